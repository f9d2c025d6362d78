"""Walk a traced graph: what feeds an operation, what reads it, and for all operations at once what lies above or below.

The walks from one operation end soon, at the roles that they do not go through. Questions whose
answer may lie a whole network away are answered for every operation in one pass over the trace, which
is in the order of execution, so that planning stays linear in the size of the model.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from bn_lightning.surgery.tracing.graph import Node, Trace

TRANSPARENT = ("shape", "pass", "join")
"""Roles that hand values on without weighing them."""

_FIXED = ("parameter", "constant")


class Walk:
    """Searches in one trace.

    Args:
        trace: The traced forward.
    """

    def __init__(self, trace: Trace) -> None:
        self.nodes = trace.nodes
        self.outputs = trace.outputs
        self._consumers = trace.consumers
        self._feeds_layer: list[bool] | None = None

    def readers(self, index: int) -> tuple[int, ...]:
        """Nodes that read the result of one."""
        return self._consumers.get(index, ())

    def is_data(self, index: int) -> bool:
        """Whether a node depends on the example, not on parameters and constants alone."""
        return self.nodes[index].role not in _FIXED

    def data(self, node: Node) -> list[int]:
        """The inputs of a node that depend on the example."""
        return [index for index in node.inputs if self.is_data(index)]

    def only_scales(self, node: Node) -> bool:
        """Whether a node shifts or scales one tensor by constants."""
        return node.role in ("join", "product") and len(self.data(node)) == 1

    def upstream(self, node: Node, *, through: Iterable[str] | None) -> Iterator[Node]:
        """Nodes that feed `node`, nearest first; the search goes on behind the roles in `through` (None: all)."""
        return self._search(node.index, lambda found: found.inputs, through)

    def downstream(self, node: Node, *, through: Iterable[str] | None, single_input: bool = False) -> Iterator[Node]:
        """Nodes that `node` feeds, nearest first; `single_input` ends the search behind operations of several."""

        def step(found: Node) -> tuple[int, ...]:
            alone = not single_input or found.index == node.index or len(self.data(found)) == 1
            return self.readers(found.index) if alone else ()

        return self._search(node.index, step, through)

    def descends(self, index: int, ancestor: int) -> bool:
        """Whether a node is computed from another, or is it."""
        waiting, seen = [index], {index}
        while waiting:
            found = waiting.pop()
            if found == ancestor:
                return True
            # An ancestor ran earlier, so nothing before it can descend from it.
            following = {source for source in self.nodes[found].inputs if source >= ancestor} - seen
            seen |= following
            waiting.extend(following)
        return False

    def nearest_above(self, is_wanted: Callable[[Node], bool], *, through: Sequence[str] | None) -> list[int | None]:
        """For every node the last wanted one that feeds it through operations of the roles `through`; in one pass."""
        found: list[int | None] = []
        for node in self.nodes:
            near = -1
            for source in node.inputs:
                above = self.nodes[source]
                if is_wanted(above):
                    near = max(near, source)
                elif through is None or above.role in through:
                    beyond = found[source]
                    near = near if beyond is None else max(near, beyond)
            found.append(None if near < 0 else near)
        return found

    def feeds_layer(self, node: Node) -> bool:
        """Whether an affine layer or a matrix product comes after a node."""
        if self._feeds_layer is None:
            feeds = [False] * len(self.nodes)
            for later in reversed(self.nodes):
                if feeds[later.index] or later.role in ("affine", "matmul"):
                    for source in later.inputs:
                        feeds[source] = True
            self._feeds_layer = feeds
        return self._feeds_layer[node.index]

    def _search(
        self, start: int, step: Callable[[Node], tuple[int, ...]], through: Iterable[str] | None
    ) -> Iterator[Node]:
        allowed = None if through is None else frozenset(through)
        queue, seen = deque([start]), {start}
        while queue:
            node = self.nodes[queue.popleft()]
            if node.index != start:
                yield node
                if allowed is not None and node.role not in allowed:
                    continue
            for following in step(node):
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
