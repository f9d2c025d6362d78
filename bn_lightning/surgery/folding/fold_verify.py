"""Hold a folded model against the original on an example.

The comparison is made in float64 copies, where a wrong fold cannot hide in rounding, and in the
models' own type, where a right one may still cost precision.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bn_lightning.errors import FoldingError
from bn_lightning.surgery.sandbox import sandbox

EXACT = 1e-6
"""Largest difference in float64, relative to the largest output; rounding in a model's own float32 steps is below."""


def cloned(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example with tensors of its own, as an in-place operation may write to them.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        Both, copied.
    """
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, dict(kwargs)))


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model returns on an example; neither is changed.

    Args:
        model: The model, in the mode it is to run in.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        Every tensor of the output, in order.
    """
    own_args, own_kwargs = cloned(args, kwargs)
    # The random state is restored, so a model that draws numbers draws the same each time.
    with sandbox(model), torch.no_grad():
        result = model(*own_args, **own_kwargs)
    return tensors_of(result)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors in what a model returned, also those in objects such as distributions and data classes.

    Args:
        result: What it returned.

    Returns:
        Every tensor, in order.

    Example:
        >>> [tuple(leaf.shape) for leaf in tensors_of({"dist": torch.distributions.Normal(torch.zeros(2), 1.0)})]
        [(2,), (2,)]
    """
    found: list[Tensor] = []
    seen: set[int] = set()
    stack = list(reversed(pytree.tree_leaves(result)))
    while stack:
        leaf = stack.pop()
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen and hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            seen.add(id(leaf))
            stack += reversed(pytree.tree_leaves(list(vars(leaf).values())))
    return found


def difference_in_float64(
    original: nn.Module,
    change: Callable[[nn.Module], nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    truth: list[Tensor],
) -> float:
    """How far a change moves a model's outputs when everything is computed in float64.

    Args:
        original: The model; left as it is.
        change: Changes a copy of it in float64, and returns it or what replaces it.
        args: Positional arguments.
        kwargs: Keyword arguments.
        truth: As `true_outputs` returns it for the original.

    Returns:
        The largest difference, relative to the largest output.
    """
    changed = change(copy.deepcopy(original).double())
    return largest_difference(outputs_of(changed, *_in_float64(args, kwargs)), truth)


def true_outputs(original: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
    """What a model returns when everything is computed in float64.

    Args:
        original: The model; left as it is.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        Its outputs; None where it does not run in float64, as with a cast to float32 of its own.
    """
    try:
        return outputs_of(copy.deepcopy(original).double(), *_in_float64(args, kwargs))
    except Exception:
        return None


def _in_float64(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def convert(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, (args, dict(kwargs)))


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest magnitude of each expected output.

    Args:
        found: Outputs of the folded model.
        expected: Outputs of the original.

    Returns:
        The difference; infinite where shapes or whole numbers differ.
    """
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in expected]:
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not (other.is_floating_point() or other.is_complex()):
            worst = max(worst, 0.0 if torch.equal(one, other) else float("inf"))
        elif other.numel():
            wide = torch.complex128 if other.is_complex() else torch.float64
            one, other = one.cpu().to(wide), other.cpu().to(wide)
            difference = (one - other).abs().max() / other.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            worst = max(worst, float("inf") if difference.isnan() else difference.item())
    return worst


def check_example(outputs: list[Tensor], model: nn.Module) -> None:
    """Refuse an example on which nothing can be compared.

    Args:
        outputs: What the original returned.
        model: The original.

    Raises:
        FoldingError: If there is no floating-point output, or one is not finite.
    """
    floating = [leaf for leaf in outputs if leaf.is_floating_point() or leaf.is_complex()]
    if not floating:
        raise FoldingError(
            f"{type(model).__name__} returned no floating-point tensor on the example, so a folded model could not be "
            "held against it. Fold the sub-module that computes the features or the scores."
        )
    if not all(bool(leaf.isfinite().all()) for leaf in floating):
        raise FoldingError(
            f"{type(model).__name__} returned NaN or infinite values on the example, so a folded model could not be "
            "held against it. Give an example, and weights, with finite outputs in evaluation mode."
        )


def check_copy(copied: nn.Module, expected: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a model whose copy is another function, as when copying loses a forward that was replaced.

    Args:
        copied: The copy, in evaluation mode.
        expected: What the original returned.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        FoldingError: If the outputs differ by more than rounding.
    """
    difference = largest_difference(outputs_of(copied, args, kwargs), expected)
    precision = max(torch.finfo(leaf.dtype).eps for leaf in _floating(expected))
    if difference > 64 * precision:
        raise FoldingError(
            f"A copy of {type(copied).__name__} computes something else than the model itself (relative difference "
            f"{difference:.2g}), and folding leaves the original as it is. copy.deepcopy loses a part of it, such as "
            "a forward that was replaced on a torch.fx.GraphModule; fold it before it became one."
        )


def check_precision(folded: list[Tensor], unfolded: list[Tensor], truth: list[Tensor] | None, names: str) -> None:
    """Refuse a folded model that is right but loses precision in its own type.

    Args:
        folded: Its outputs.
        unfolded: The original's outputs.
        truth: Those of the original in float64; None where it does not run in float64.
        names: Which norms were folded, for the message.

    Raises:
        FoldingError: If the error is beyond 16 times the original's own, or the square root of the precision where that
            is not known.
    """
    dtypes = [leaf.dtype for leaf in unfolded if leaf.is_floating_point() or leaf.is_complex()]
    precision = max(torch.finfo(dtype).eps for dtype in dtypes)
    if truth is None:
        error, allowed = largest_difference(folded, unfolded), precision**0.5
    else:
        exact = [leaf for leaf in truth if leaf.is_floating_point() or leaf.is_complex()]
        error = largest_difference(_floating(folded), exact)
        allowed = 16 * largest_difference(_floating(unfolded), exact) + 64 * precision
    if not error <= allowed:
        raise FoldingError(
            f"With {names}, a relative error of {error:.2g} is left on the example, where rounding explains up to "
            f"{allowed:.2g}. Fold the model in float32 and convert it afterwards."
        )


def _floating(outputs: list[Tensor]) -> list[Tensor]:
    return [leaf for leaf in outputs if leaf.is_floating_point() or leaf.is_complex()]
