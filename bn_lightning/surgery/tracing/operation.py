"""One call of a torch function as it is before it runs, and where the channel axis of its results is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bn_lightning.surgery.tracing import axes


@dataclass(frozen=True)
class Operation:
    """What is known of a call before it runs; an in-place operation makes its input the result.

    Args:
        function: The function.
        op: Its bare name, or what it amounts to.
        role: What it means for a norm.
        args: Positional arguments.
        kwargs: Keyword arguments.
        inputs: Nodes that made its tensor arguments.
        layouts: Shapes and channel axes of its tensor arguments.
        index: How many calls of the same function came before in the same forward.
        moved: For operations of shape, the channel axis of each result.
        causal: Whether it is an attention in which no position sees a later one.
        in_call: Whether its first argument is the pre-activation, for nonlinearities.
    """

    function: Callable[..., Any]
    op: str
    role: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    layouts: list[axes.Layout]
    index: int
    moved: list[int | None]
    causal: bool = False
    in_call: bool = True

    def channel_dim(self, role: str, operands: list[str], shape: tuple[int, ...], position: int) -> int | None:
        """The channel axis of one result, counted from the end; None where it is unknown.

        Args:
            role: What the result means for a norm; a product with a weight is "affine".
            operands: Roles of the inputs.
            shape: Shape of the result.
            position: Which of the results it is.

        Returns:
            The axis.
        """
        if self.role == "matmul" and (role == "affine" or self.op == "einsum"):
            return self._of_product([operand == "parameter" for operand in operands], shape)
        if role == "affine":
            return axes.of_affine(self.op, shape)
        if role == "norm":
            return axes.of_norm(self.op, shape)
        if role == "shape":
            return self.moved[position] if position < len(self.moved) else None
        if self.op in ("cat", "concat", "concatenate"):
            return axes.of_concatenation(shape, self.layouts)
        return axes.of_elementwise(shape, self.layouts)

    def _of_product(self, weights: list[bool], shape: tuple[int, ...]) -> int | None:
        if self.op == "einsum":
            is_equation = bool(self.args) and isinstance(self.args[0], str)
            operands = list(zip(self.layouts, weights, strict=True))
            return axes.of_einsum(self.args[0], operands, len(shape)) if is_equation else None
        if self.op == "tensordot":
            dims = self.args[2] if len(self.args) > 2 else self.kwargs.get("dims", 2)
            ndims = (len(self.layouts[0][0]), len(self.layouts[1][0]))
            return axes.of_tensordot(dims, ndims, weight_first=weights[0])
        # x @ W writes W's columns as channels on the last axis; W @ x on the last but one. The functions that add
        # take the summand first.
        factor = weights[1 if self.op.startswith(("add", "badd")) else 0]
        return -2 if factor and len(shape) > 1 else -1
