"""Find the layers whose output, or input, a norm can be hooked on."""

from dataclasses import replace

from bn_lightning.surgery.rules.units import Unit
from bn_lightning.surgery.rules.walk import TRANSPARENT, Walk
from bn_lightning.surgery.tracing.graph import Node, Trace

_HOOKABLE = ("linear", "bilinear", "conv")


class Producers:
    """Answers questions about the layers of one trace.

    Args:
        trace: The traced forward.
        walk: Searches in it.
        units: The activations that are written out in it, by nonlinearity.
    """

    def __init__(self, trace: Trace, walk: Walk, units: dict[int, Unit]) -> None:
        self._walk = walk
        self._returned = trace.returned
        self._unit_behind = {unit.source: unit for unit in units.values()}
        self._unit_at = {unit.site: unit for unit in units.values()}
        self._calls: dict[str, list[Node]] = {}
        for node in trace.nodes:
            if node.role == "affine":
                self._calls.setdefault(node.layer, []).append(node)
        self._readers: dict[str, list[Node | None]] = {}

    def behind(self, node: Node) -> str | None:
        """Path of the layer whose output goes to the activation `node` and nowhere else, or None.

        Args:
            node: A nonlinearity; of a written-out activation, the one that stands for it.

        Returns:
            The path, if every call of the layer is read by such a call of the same function or module.
        """
        unit = self._unit_at.get(node.index)
        source = self._walk.nodes[node.inputs[0] if unit is None else unit.source]
        reader = self._reader(source) if source.role == "affine" else None
        if reader is None or reader.index != node.index or not self._is_output(source):
            return None
        # The hook sits on the layer, so every other call of the layer must be such a site as well.
        if source.layer not in self._readers:
            self._readers[source.layer] = [self._reader(call) for call in self._calls[source.layer]]
        readers = self._readers[source.layer]
        return source.layer if all(reader is not None and _is_like(reader, node) for reader in readers) else None

    def branches(self, node: Node) -> tuple[str, ...]:
        """Paths of the layers that feed `node` through adds, concatenations and operations of shape.

        Args:
            node: A nonlinearity.

        Returns:
            The last layer of each branch, in the order of the forward, where a hook on its output would do.
        """
        found = [above for above in self._walk.upstream(node, through=TRANSPARENT) if above.role == "affine"]
        return tuple(dict.fromkeys(above.layer for above in sorted(found, key=_index) if self._is_output(above)))

    def of_inputs(self) -> tuple[tuple[str, Node], ...]:
        """The layers that read the example itself, through operations of shape at most.

        Returns:
            Pairs of a layer's path and the node that it reads; the channel axis of that node is the one that the
            layer mixes. A layer that also reads something else is left out.
        """
        found: list[tuple[str, Node]] = []
        for layer, calls in self._calls.items():
            read = [node for node in map(self._raw_input, calls) if node is not None]
            if len(read) == len(calls):
                found.append((layer, read[0]))
        return tuple(found)

    def _raw_input(self, call: Node) -> Node | None:
        if not call.op.startswith(("linear", "conv")) or call.owner != call.layer or not call.layer:
            return None
        axis = -1 if call.op == "linear" else -1 - int(call.op[-2])
        node = self._walk.nodes[call.inputs[0]]
        while node.owner == call.layer and node.role == "pass":  # padding by the layer itself
            node = self._walk.nodes[node.inputs[0]]
        above = node
        while above.role in ("shape", "pass") and len(above.inputs) == 1:
            above = self._walk.nodes[above.inputs[0]]
        if above.role != "input" or not node.is_floating or node.owner == call.layer:
            return None
        return replace(node, channel_dim=axis)

    def _reader(self, source: Node) -> Node | None:
        """The activation that alone reads a layer's output."""
        if source.index in self._walk.outputs:
            return None
        unit = self._unit_behind.get(source.index)
        if unit is not None:
            return self._walk.nodes[unit.site]
        readers = self._walk.readers(source.index)
        return self._walk.nodes[readers[0]] if len(readers) == 1 else None

    def _is_output(self, source: Node) -> bool:
        # A layer that applies its own activation returns something else than its affine result.
        returned = (source.layer, source.index) in self._returned
        return returned and source.op.startswith(_HOOKABLE) and source.layer != ""


def _is_like(reader: Node, node: Node) -> bool:
    """Whether two activations are the same function of the same owner, as in the turns of a loop."""
    mine, its = node.call, reader.call
    if mine is None or its is None:
        return False
    return (mine.owner, mine.function, mine.activation) == (its.owner, its.function, its.activation)


def _index(node: Node) -> int:
    return node.index
