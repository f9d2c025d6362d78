"""Decide for each nonlinearity of a trace whether a norm belongs there, with a reason in words."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from bn_lightning.surgery import ops
from bn_lightning.surgery.graph import Node, Trace

_TRANSPARENT = ("shape", "pass", "join")


class Policy:
    """Answers questions about the nonlinearities of one trace.

    Args:
        trace: The traced forward.
    """

    def __init__(self, trace: Trace) -> None:
        self._nodes = trace.nodes
        self._outputs = trace.outputs
        self._consumers = trace.consumers
        self._returned = trace.returned
        self._calls = Counter(node.layer for node in trace.nodes if node.role == "affine")

    def skip_reason(self, node: Node) -> str:
        """Why no norm belongs at `node`, or an empty string where one does.

        Args:
            node: A nonlinearity of the trace.

        Returns:
            The reason.
        """
        source = self._nodes[node.inputs[0]]
        if not source.is_floating or len(source.shape) < 2:
            return f"its input of shape {source.shape} has no batch and channel axes of real numbers"
        if node.op == "glu":
            return "a gate: its input is content and gate in one tensor"
        for rule in (self._normalised, self._no_affine, self._gate, self._head, self._recurrence):
            reason = rule(node)
            if reason:
                return reason
        return ""

    def layer(self, node: Node) -> str:
        """Path of the affine layer that makes the input of `node`, through norms and pass-through operations."""
        for found in self._upstream(node, through=(*_TRANSPARENT, "norm", "product", "matmul", "other")):
            if found.role == "affine":
                return found.layer
        return ""

    def producer(self, node: Node) -> str | None:
        """Path of the layer whose output goes straight to `node` and nowhere else, or None."""
        source = self._nodes[node.inputs[0]]
        alone = self._consumers.get(source.index, ()) == (node.index,) and source.index not in self._outputs
        if source.role != "affine" or not alone or not self._is_layer_output(source):
            return None
        # The hook sits on the layer, so every other call of the layer must be such a site as well.
        for other in self._nodes:
            if other.role == "affine" and other.layer == source.layer and other.index != source.index:
                users = [self._nodes[index] for index in self._consumers.get(other.index, ())]
                if len(users) != 1 or users[0].call != node.call or other.index in self._outputs:
                    return None
        return source.layer

    def _is_layer_output(self, source: Node) -> bool:
        # A layer that applies its own activation returns something else than its affine result.
        returned = (source.layer, source.index) in self._returned
        return returned and source.op.startswith(("linear", "bilinear", "conv")) and source.layer != ""

    def _normalised(self, node: Node) -> str:
        for found in self._upstream(node, through=_TRANSPARENT):
            if found.role == "norm":
                return f"already normalised by {found.op} in {found.owner or 'the model'!r}"
        for found in self._downstream([node], through=("shape", "pass")):
            if found.role == "norm":
                return f"normalised right after by {found.op} in {found.owner or 'the model'!r}"
        return ""

    def _no_affine(self, node: Node) -> str:
        kinds = self._upstream(node, through=(*_TRANSPARENT, "product", "matmul", "other", "loss"))
        if any(found.role == "affine" for found in kinds):
            return ""
        return "no affine layer between it and the input or the previous nonlinearity"

    def _gate(self, node: Node) -> str:
        branch = (*_TRANSPARENT, "product", "other", "nonlinearity")
        # What the nonlinearity is computed from without a layer in between is the same branch as itself.
        own = {found.index for found in self._upstream(node, through=branch)}
        for other in self._factors(node, through=(*_TRANSPARENT, "nonlinearity")):
            scaled = self._upstream(self._nodes[other], through=("pass", "join", "product", "other"))
            if own & {other, *(found.index for found in scaled)}:
                return (
                    f"with the product behind it one activation (x·{node.op}(x)); use its module form to normalise it"
                )
        if node.op in ops.GATING and any(True for _ in self._factors(node, through=_TRANSPARENT)):
            return "a gate: its output is multiplied with another branch"
        return ""

    def _factors(self, node: Node, *, through: Iterable[str]) -> Iterator[int]:
        """What the output of `node` is multiplied with, other than by itself and by constants."""
        for found in self._downstream([node], through=through, single_input=True):
            if found.role == "product":
                for index in found.inputs:
                    if self._is_data(index) and not self._descends(index, node.index):
                        yield index

    def _head(self, node: Node) -> str:
        following = list(self._downstream([node], through=None))
        if any(found.role in ("affine", "matmul") for found in following):
            return ""
        if node.op in ops.SATURATING:
            return "an output head: no affine layer follows"
        if all(found.role in ("shape", "loss") or self._only_scales(found) for found in following):
            return "an output head: the model's last operation"
        return ""

    def _only_scales(self, node: Node) -> bool:
        data = [index for index in node.inputs if self._is_data(index)]
        return node.role in ("join", "product") and len(data) == 1

    def _recurrence(self, node: Node) -> str:
        fed_by = self._repeated_layers(node)
        if not fed_by:
            return ""
        related = list(self._upstream(node, through=None)) + list(self._downstream([node], through=None))
        for found in related:
            if found.role == "nonlinearity" and found.op == node.op and fed_by & self._repeated_layers(found):
                layer = sorted(fed_by)[0]
                return f"recurrent through {layer!r}: each step needs statistics of its own (a sequence-wise norm)"
        return ""

    def _repeated_layers(self, node: Node) -> set[str]:
        found = self._upstream(node, through=(*_TRANSPARENT, "product"))
        return {other.layer for other in found if other.role == "affine" and self._calls[other.layer] > 1}

    def _is_data(self, index: int) -> bool:
        """Whether a node depends on the example, not on parameters and constants alone."""
        node = self._nodes[index]
        return node.role not in ("parameter",) and (bool(node.inputs) or node.owner is None)

    def _descends(self, index: int, ancestor: int) -> bool:
        node = self._nodes[index]
        return index == ancestor or any(found.index == ancestor for found in self._upstream(node, through=None))

    def _upstream(self, node: Node, *, through: Iterable[str] | None) -> Iterator[Node]:
        """Nodes that feed `node`, nearest first; the search goes on behind the roles in `through` (None: all)."""
        return self._search([node.index], lambda found: found.inputs, through)

    def _downstream(
        self, nodes: list[Node], *, through: Iterable[str] | None, single_input: bool = False
    ) -> Iterator[Node]:
        def step(found: Node) -> tuple[int, ...]:
            users = self._consumers.get(found.index, ())
            if not single_input:
                return users
            data = [index for index in found.inputs if self._is_data(index)]
            return users if found in nodes or len(data) == 1 else ()

        return self._search([node.index for node in nodes], step, through)

    def _search(
        self, start: list[int], step: Callable[[Node], tuple[int, ...]], through: Iterable[str] | None
    ) -> Iterator[Node]:
        allowed = None if through is None else frozenset(through)
        queue, seen = deque(start), set(start)
        while queue:
            index = queue.popleft()
            node = self._nodes[index]
            if index not in start:
                yield node
                if allowed is not None and node.role not in allowed:
                    continue
            for following in step(node):
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
