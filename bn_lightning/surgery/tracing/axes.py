"""Follow the channel axis through shape operations.

Axes are counted from the end (-1 is the last), so that one number serves batched and unbatched
tensors and every number of leading axes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Layout = tuple[tuple[int, ...], int | None]
"""A tensor's shape and its channel axis (negative; None where it is not known)."""


def of_affine(op: str, shape: tuple[int, ...]) -> int | None:
    """The channel axis that an affine operation writes: before the spatial axes of a convolution, else the last.

    Args:
        op: Bare name of the operation.
        shape: Shape of its output.

    Returns:
        The axis, counted from the end.
    """
    if op.startswith("conv"):
        return -1 - int(op[-2])
    return -1 if shape else None


def of_norm(op: str, shape: tuple[int, ...]) -> int | None:
    """The channel axis that a norm of torch presumes: the last for layer and RMS norm, else axis 1.

    Args:
        op: Bare name of the operation.
        shape: Shape of its output.

    Returns:
        The axis, counted from the end.
    """
    if op in ("layer_norm", "rms_norm"):
        return -1
    return 1 - len(shape) if len(shape) > 1 else None


def of_elementwise(shape: tuple[int, ...], inputs: Iterable[Layout]) -> int | None:
    """The channel axis of an element-wise result: that of the first input which has one and fits.

    Args:
        shape: Shape of the result.
        inputs: Layouts of the inputs.

    Returns:
        The axis, counted from the end, or None.
    """
    for input_shape, axis in inputs:
        # Fewer axes than an input means that some were reduced, and nothing says which.
        if axis is not None and len(input_shape) <= len(shape) and shape[axis] == input_shape[axis]:
            return axis
    return None


def of_concatenation(shape: tuple[int, ...], inputs: Iterable[Layout]) -> int | None:
    """The channel axis of a concatenation: that of the first part which has one, however many channels join.

    Args:
        shape: Shape of the result.
        inputs: Layouts of the parts.

    Returns:
        The axis, counted from the end, or None.
    """
    return next((axis for part, axis in inputs if axis is not None and len(part) == len(shape)), None)


def of_einsum(equation: str, operands: Sequence[tuple[Layout, bool]], ndim: int) -> int | None:
    """The channel axis of an einsum: the one label that a weight brings in, else that of the first operand's channels.

    Args:
        equation: The equation, such as "bcl,oc->bol"; ellipses and an implied output are understood.
        operands: The layout of each operand, and whether it is a weight.
        ndim: Number of axes of the result.

    Returns:
        The axis, counted from the end, or None.

    Example:
        >>> of_einsum("bcl,oc->bol", [(((8, 3, 5), -2), False), (((4, 3), None), True)], 3)
        -2
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = Counter(left.replace(",", "").replace(".", ""))
        right = "." * 3 * ("..." in left) + "".join(sorted(letter for letter, count in letters.items() if count == 1))
    labels = [_labels(term, len(shape)) for term, ((shape, _), _) in zip(left.split(","), operands, strict=True)]
    output = _labels(right, ndim)
    weights = {label for term, (_, is_weight) in zip(labels, operands, strict=True) if is_weight for label in term}
    data = {label for term, (_, is_weight) in zip(labels, operands, strict=True) if not is_weight for label in term}
    if weights:
        found = [axis - ndim for axis, label in enumerate(output) if label in weights - data]
        return found[0] if len(found) == 1 else None
    for term, ((_, axis), _) in zip(labels, operands, strict=True):
        if axis is not None and term[axis] in output:
            return output.index(term[axis]) - ndim
    return None


def _labels(term: str, ndim: int) -> list[str]:
    """One label for each axis; the axes under an ellipsis are numbered from its end, as they are broadcast."""
    head, dots, tail = term.partition("...")
    hidden = range(ndim - len(head) - len(tail), 0, -1) if dots else ()
    return [*head, *(f".{number}" for number in hidden), *tail]


def of_tensordot(dims: Any, ndims: tuple[int, int], *, weight_first: bool) -> int | None:
    """The channel axis of a tensordot of data and a weight: the weight's one axis that is not summed over.

    Args:
        dims: The `dims` of the call: a number of axes, or a list of axes for each operand.
        ndims: Number of axes of either operand.
        weight_first: Whether the weight is the first operand.

    Returns:
        The axis of the result, counted from the end, or None.

    Example:
        >>> of_tensordot(1, (3, 2), weight_first=False)
        -1
    """
    if not isinstance(dims, int | list | tuple):  # a tensor of axes, which nobody writes
        return None
    summed = dims if isinstance(dims, int) else len(dims[0])
    free = [number - summed for number in ndims]
    if free[0 if weight_first else 1] != 1:
        return None
    return -sum(free) if weight_first else -1


def through_shape_op(
    function: Callable[..., Any], source: Tensor, axis: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[int | None]:
    """Find where a shape operation moves the channel axis, by moving a tensor of channel numbers.

    The operation is run once more on numbers that count the channels along `axis`. In each result
    the channel axis is the last one along which the numbers vary. This covers view, permute,
    indexing, chunk, means and their kin without a rule for each.

    Args:
        function: The operation.
        source: Its input tensor.
        axis: The channel axis of `source`, counted from the end.
        args: Positional arguments of the call, `source` among them.
        kwargs: Keyword arguments of the call, `source` among them.

    Returns:
        One axis for each tensor of the result, None where the numbers do not vary or the operation refuses them.
    """
    # Where the source holds no values, the numbers still need some.
    device = "cpu" if source.is_meta else source.device
    numbers = torch.empty_like(source, dtype=torch.float64, device=device, requires_grad=False)
    column = torch.arange(source.shape[axis], dtype=torch.float64, device=device).view(-1, *[1] * (-axis - 1))
    numbers.copy_(column.expand(source.shape))
    args, kwargs = pytree.tree_map(lambda leaf: numbers if leaf is source else leaf, (args, kwargs))
    try:
        results = function(*args, **kwargs)
    except Exception:  # the shape operation may refuse what it is given; then the axis is simply unknown
        return []
    return [_last_varying_axis(leaf) for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _last_varying_axis(numbers: Tensor) -> int | None:
    for axis in range(-1, -numbers.ndim - 1, -1):
        if numbers.shape[axis] > 1 and bool((numbers.narrow(axis, 0, 1) != numbers).any()):
            return axis
    return None
