"""Find nonlinearities that feed themselves through a layer called several times, as in a recurrent network."""

from collections import Counter

from bn_lightning.surgery.rules.walk import TRANSPARENT, Walk
from bn_lightning.surgery.tracing.graph import Node

_WITHIN_A_STEP = (*TRANSPARENT, "product")


class Recurrence:
    """Says which nonlinearities of a trace are steps of a recurrence.

    Sets of layers, and of pairs of an operation and a layer, are the bits of integers: one pass over
    the trace in either direction then answers for every node what lies above and below it.

    Args:
        walk: The trace.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        calls = Counter((node.run, node.layer) for node in walk.nodes if node.role == "affine")
        self._repeated = {layer: 0 for (_, layer), count in calls.items() if count > 1}
        self._repeated = {layer: number for number, layer in enumerate(self._repeated)}
        self._calls = calls
        self._related: list[int] = []
        if self._repeated:
            self._look()

    def reason(self, node: Node) -> str:
        """Why `node` is a step of a recurrence, or an empty string."""
        if not self._repeated:
            return ""
        shared = self._keys[node.index] & self._related[node.index]
        if not shared:
            return ""
        number = (shared & -shared).bit_length() - 1
        layer = list(self._repeated)[number % len(self._repeated)]
        return f"recurrent through {layer!r}: each step needs statistics of its own (a sequence-wise norm)"

    def _look(self) -> None:
        nodes = self._walk.nodes
        width = len(self._repeated)
        layers: list[int] = []  # repeated layers that feed a node within a step
        ops: dict[str, int] = {}
        self._keys = [0] * len(nodes)
        for node in nodes:
            mask = 0
            for source in node.inputs:
                above = nodes[source]
                if above.role == "affine":
                    if self._calls[above.run, above.layer] > 1:
                        mask |= 1 << self._repeated[above.layer]
                elif above.role in _WITHIN_A_STEP:
                    mask |= layers[source]
            layers.append(mask)
            if node.role == "nonlinearity" and mask:
                self._keys[node.index] = mask << (width * ops.setdefault(node.op, len(ops)))
        above_of, below_of = [0] * len(nodes), [0] * len(nodes)
        for node in nodes:
            for source in node.inputs:
                above_of[node.index] |= above_of[source] | self._keys[source]
        for node in reversed(nodes):
            for source in node.inputs:
                below_of[source] |= below_of[node.index] | self._keys[node.index]
        self._related = [above | below for above, below in zip(above_of, below_of, strict=True)]
