"""What surrounds a norm in a traced forward, behind the operations that its scale and shift commute with."""

from collections.abc import Iterable, Iterator

from bn_lightning.surgery.tracing.graph import Node, Trace

_MOVES = frozenset(
    "transpose t T mT permute movedim moveaxis swapaxes swapdims view reshape flatten unflatten squeeze unsqueeze "
    "getitem chunk split tensor_split unbind narrow select expand flip roll ravel contiguous clone repeat "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout pad".split()
)
# The second tensor gives its shape alone.
_MOVES_LIKE = frozenset({"view_as", "reshape_as", "expand_as"})
_AVERAGES = frozenset(
    "mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate "
    "upsample".split()
)
EXTREMES = frozenset(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin max "
    "min".split()
)
"""Operations that commute with a scale and a shift only where the scale is not negative."""


class Surroundings:
    """Answers who made a tensor of a trace and who reads it, through operations that commute with a norm.

    Whether such an operation keeps within a channel is not read off its name: `fold_probe` finds out.

    Args:
        trace: The traced forward.
    """

    def __init__(self, trace: Trace) -> None:
        self.nodes = trace.nodes
        self.folded: set[str] = set()
        self.layer_calls: dict[str, list[Node]] = {}
        self.norm_calls: dict[str, list[Node]] = {}
        self._parameters: dict[str, list[Node]] = {}
        self._consumers = trace.consumers
        self._outputs = trace.outputs
        for node in trace.nodes:
            if node.role == "affine":
                self.layer_calls.setdefault(node.layer, []).append(node)
            elif node.op == "parameter":
                self._parameters.setdefault(node.layer, []).append(node)
            elif node.op == "batch_norm" and node.owner is not None:
                self.norm_calls.setdefault(node.owner, []).append(node)

    def source(self, call: Node, between: set[str]) -> Node:
        """What computed the input of a call; the operations passed on the way are added to `between`."""
        node = self.nodes[call.inputs[0]]
        while self._commutes(node):
            # Within the layer itself, as the padding of a circular convolution, it is the layer's own.
            if node.owner != call.owner:
                self._note(node, between)
            node = self.nodes[node.inputs[0]]
        return node

    def readers(self, calls: Iterable[Node], between: set[str]) -> Iterator[Node | None]:
        """What reads the results of calls; None for the model's output. Adds to `between` likewise."""
        queue = list(calls)
        while queue:
            node = queue.pop()
            if node.index in self._outputs:
                yield None
            for index in self._consumers.get(node.index, ()):
                reader = self.nodes[index]
                if reader.op in _MOVES_LIKE and reader.inputs[0] != node.index:
                    continue
                if self._commutes(reader):
                    self._note(reader, between)
                    queue.append(reader)
                else:
                    yield reader

    def users_of_parameter(self, name: str, parametrizations: str) -> Iterator[Node | None]:
        """What reads a parameter, through what is computed from parameters alone; None for the model's output.

        Args:
            name: The first of its names in the model.
            parametrizations: Path of the modules that compute the weight from it, if there are any.

        Yields:
            The operations.
        """
        # Under the name that tracing gives to parameters.
        queue = list(self._parameters.get(name.removesuffix(".weight"), ()))
        while queue:
            node = queue.pop()
            if node.index in self._outputs:
                yield None
            for index in self._consumers.get(node.index, ()):
                user = self.nodes[index]
                if user.role == "parameter" or (user.owner or "").startswith(parametrizations):
                    queue.append(user)
                else:
                    yield user

    def _commutes(self, node: Node) -> bool:
        if node.op == "batch_norm":
            return node.owner in self.folded
        if node.op in _MOVES_LIKE:
            return True
        # A border that this example does not get, as one up to a multiple, says nothing of what others get. A layer's
        # own padding is fixed.
        if node.op == "pad" and node.owner not in self.layer_calls:
            return len(node.inputs) == 1 and node.shape != self.nodes[node.inputs[0]].shape
        return node.op in _MOVES | _AVERAGES | EXTREMES and len(node.inputs) == 1 and node.role != "parameter"

    def _note(self, node: Node, between: set[str]) -> None:
        if node.op != "batch_norm":
            between.add(node.op)


_WITHOUT_OPERATION = {"input": "an input", "constant": "a constant", "parameter": "a parameter"}


def describe(node: Node) -> str:
    """An operation in words, with the module that calls it.

    Args:
        node: The operation.

    Returns:
        Such as "add in 'block'".
    """
    if node.role == "affine":
        return repr(node.layer)
    if node.role in _WITHOUT_OPERATION:
        return _WITHOUT_OPERATION[node.role]
    return f"{node.op} in {repr(node.owner) if node.owner else 'the model'}"
