"""Find the operations of a causal decoder whose statistics over time would show it the future.

From each causal attention the walk goes up the positions that it attends over, and from there down to
all that is computed from them. At other attention (as over an encoder's output) it follows the
queries alone, since the result has their positions.
"""

from bn_lightning.surgery.rules.walk import Walk
from bn_lightning.surgery.tracing.graph import Node


class Causality:
    """Says where a norm would pool over the positions of a causal decoder.

    Args:
        walk: The trace.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._attention = {node.run: node for node in reversed(walk.nodes) if node.causal}
        above = self._positions_above()
        self._batches = {walk.nodes[index].shape[:1] for index in above if walk.nodes[index].role == "input"}
        self._within = self._positions_below(above)

    def reason(self, node: Node) -> str:
        """Why statistics at `node` would leak the future, or an empty string."""
        if node.index not in self._within:
            return ""
        source = self._walk.nodes[node.inputs[0]]
        axis = -1 if source.channel_dim is None else source.channel_dim
        pooled = [size for number, size in enumerate(source.shape) if number not in (0, axis % len(source.shape))]
        # With two axes the first is the batch, unless positions were flattened into it or picked from it.
        if all(size == 1 for size in pooled) and (len(source.shape) > 2 or source.shape[:1] in self._batches):
            return ""
        attention = self._attention[node.run]
        return (
            f"causal attention in {attention.owner or 'the model'!r}: statistics over time would leak the future; "
            "use a norm of single positions, or insist with plan.override"
        )

    def _positions_above(self) -> set[int]:
        # Up to the product of queries and keys, scores come from both; above it only from where they come themselves.
        waiting = [(node.index, True) for node in self._walk.nodes if node.causal]
        seen = set(waiting)
        while waiting:
            index, is_score = waiting.pop()
            node = self._walk.nodes[index]
            sources = self._walk.data(node)
            if _mixes_positions(node):
                sources = sources if is_score or node.causal else sources[:1]
                is_score = False
            following = {(source, is_score) for source in sources} - seen
            seen |= following
            waiting.extend(following)
        return {index for index, _ in seen}

    def _positions_below(self, above: set[int]) -> set[int]:
        waiting, seen = list(above), set(above)
        while waiting:
            index = waiting.pop()
            for reader in self._walk.readers(index):
                node = self._walk.nodes[reader]
                attended = _mixes_positions(node) and not node.causal and self._walk.data(node)[0] != index
                if reader not in seen and not attended:
                    seen.add(reader)
                    waiting.append(reader)
        return seen


def _mixes_positions(node: Node) -> bool:
    return node.role == "matmul" or node.op == "multi_head_attention_forward"
