"""Fold batch norms into the affine layers next to them, for inference: a smaller model of the same outputs.

In evaluation mode a batch norm is one scale and one shift for each channel, the same for every sample
(Ioffe & Szegedy 2015, Algorithm 2, line 11), so a layer next to it can do its work. What was found to be
possible is read off a traced forward; so only what the example passes through is known.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import FoldingError, FoldingWarning, NoEffectWarning
from bn_lightning.surgery.folding.fold_carry import carry_out
from bn_lightning.surgery.folding.fold_plan import Fold, FoldingPlan, KeptNorm
from bn_lightning.surgery.folding.fold_planning import plan_folding
from bn_lightning.surgery.folding.fold_verify import (
    EXACT,
    check_copy,
    check_example,
    check_precision,
    difference_in_float64,
    outputs_of,
    true_outputs,
)
from bn_lightning.surgery.sandbox import preserve_modes
from bn_lightning.surgery.tracing.graph import CHILD_NAME


def fold_batch_norm(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, partial: bool = False
) -> nn.Module:
    """Make a copy of a model for inference, with its batch norms folded into neighbouring affine layers.

    ===================================  ===================================================
    a norm                               becomes
    ===================================  ===================================================
    behind linear, bilinear layers and   part of their weights and biases
    (transposed) convolutions that
    feed only it
    in front of linear layers and of     part of theirs
    convolutions without zero padding
    that only it feeds
    written by hand, anywhere else       itself, in evaluation mode a fixed scale and shift
    inserted on an activation module     a module beside that one, in an `nn.Sequential`
    inserted on a layer                  a module under that layer, and a hook of it
    inserted at a call of a function     a module in the forward of the calling module, which
    or of a shared module                becomes a graph (`torch.fx.GraphModule`) for that
    ===================================  ===================================================

    The copy is in evaluation mode and, without `partial`, needs nothing of this package to run or to be
    loaded. Folded norms written by hand leave an `nn.Identity`, so all other paths stay. A layer whose
    weights were tied to another's gets its own; parametrized weights become plain ones; a layer without
    bias gets one; biases that insertion froze are trainable again. Arithmetic is in float64, rounded once.
    Do not train the copy: it has no batch statistics where norms were folded.

    A layer next to a norm takes it only if that is exact for every input along the example's path:
    `plan_folding` says which and why. Zero padding behind a norm is no such case. Its border could be
    put right by an added map or by padding with another value, but that costs a pass over the
    activations, as the norm does.

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 11.

    Args:
        model: Any module that runs on the example; left as it is.
        args: Positional arguments of one call, a tuple, on the model's device.
        kwargs: Keyword arguments of the call.
        partial: Whether inserted norms for which a forward would have to be rewritten stay as inserted instead; the
            copy then needs this package to run.

    Returns:
        The folded copy, whose outputs on the example were compared with the original's.

    Raises:
        FoldingError: If the model cannot be copied, its outputs cannot be compared or differ, or an inserted norm has
            no place in plain torch; the message names the norms.
        TypeError: If `args` is not a tuple.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> x = torch.randn(2, 3, 6, 6)
        >>> folded = fold_batch_norm(model, (x,))
        >>> folded[1], torch.allclose(folded(x), model(x), atol=1e-6)
        (Identity(), True)
    """
    if not isinstance(args, tuple):
        raise TypeError(f"args is the tuple of positional arguments, such as (x,); got {type(args).__name__}.")
    # Parameters made in inference mode could not be used outside it.
    with torch.inference_mode(False):
        folded, plan = _fold(getattr(model, "_orig_mod", model), args, kwargs or {}, partial=partial)
    _report(plan, model)
    return folded


def _fold(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool
) -> tuple[nn.Module, FoldingPlan]:
    try:
        # Weights that a hook computed, as in pruning, are no leaves of a graph, which deepcopy refuses.
        held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        memo = {id(value): value.detach().clone() for value in held if not value.is_leaf}
        original = copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise FoldingError(
            f"{type(model).__name__} cannot be copied ({error}), and folding leaves the original as it is. Give a "
            "model that copy.deepcopy takes, such as the network alone without its trainer."
        ) from error
    with preserve_modes(model):
        expected = outputs_of(model.eval(), args, kwargs)
    check_example(expected, model)
    check_copy(original, expected, args, kwargs)
    plan = plan_folding(original, args, kwargs)
    if not partial:
        _refuse_homeless(plan)
    folded = carry_out(copy.deepcopy(original), plan, partial=partial)
    _verify(original, folded, plan, expected, args, kwargs, partial=partial)
    return folded, plan


def _refuse_homeless(plan: FoldingPlan) -> None:
    homeless = [norm for norm in plan.kept if norm.place == "none"]
    if homeless:
        raise FoldingError(
            "These inserted norms go into no layer and have no place in plain torch:\n"
            f"{_lines(homeless)}\nExclude them from insertion, or keep them with fold_batch_norm(..., partial=True), "
            "whose result needs bn_lightning to run."
        )


def _verify(
    original: nn.Module,
    folded: nn.Module,
    plan: FoldingPlan,
    expected: list[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    partial: bool,
) -> None:
    try:
        found = outputs_of(folded, args, kwargs)
    except Exception as error:
        raise FoldingError(
            f"{type(original).__name__} does not run any more with {_names(plan.folds)} ({error}); its code may use "
            "attributes of these norms. Fold the sub-modules in which it does not."
        ) from error
    truth = true_outputs(original, args, kwargs)
    if truth is not None:

        def difference(some: FoldingPlan, partial: bool) -> float:
            change = functools.partial(carry_out, plan=some, partial=partial)
            return difference_in_float64(original, change, args, kwargs, truth)

        whole = difference(plan, partial)
        if whole > EXACT:
            raise FoldingError(
                f"Folded, {type(original).__name__} computes something else on the example (relative difference "
                f"{whole:.2g} in float64): {_wrong(plan, difference)}."
            )
    check_precision(found, expected, truth, _names(plan.folds))


def _wrong(plan: FoldingPlan, difference: Callable[[FoldingPlan, bool], float]) -> str:
    """What changes the outputs, found by adding one fold after another, and what to do about it."""
    right: list[Fold] = []
    wrong: list[Fold] = []
    for fold in plan.folds:
        rest = (other.norm for other in plan.folds if other not in (*right, fold))
        # Inserted norms that are not folded in this trial stay as inserted.
        staying = (KeptNorm(norm, "", "none" if f"{CHILD_NAME}." in norm else "own") for norm in rest)
        trial = FoldingPlan((*right, fold), (*plan.kept, *staying))
        (wrong if difference(trial, True) > EXACT else right).append(fold)
    if wrong:
        return (
            f"wrong with {_names(wrong)}. What these layers return or hold is read where tracing does not see it, as "
            "in a scripted function or an extension. Fold the sub-modules without that"
        )
    places = ", ".join(kept.norm for kept in plan.kept if kept.place in ("beside", "graph"))
    return (
        f"wrong where {places} were put, as the forward around them takes another path as a graph. Keep them with "
        "fold_batch_norm(..., partial=True), whose result needs bn_lightning to run"
    )


def _names(folds: Sequence[Fold]) -> str:
    return (
        ", ".join(f"{fold.norm!r} folded into {', '.join(map(repr, fold.into))}" for fold in folds) or "no norm folded"
    )


def _lines(norms: Sequence[KeptNorm]) -> str:
    return "\n".join(f"  {norm.norm}: {norm.reason}" for norm in norms)


def _report(plan: FoldingPlan, model: nn.Module) -> None:
    kept = _lines(plan.kept)
    if not plan.folds:
        what = f"none of its {len(plan.kept)} can go into a layer:\n{kept}" if kept else "it has none"
        warnings.warn(f"No batch norm of {type(model).__name__} was folded: {what}", NoEffectWarning, stacklevel=3)
    elif kept:
        warnings.warn(
            f"{len(plan.folds)} batch norms were folded; {len(plan.kept)} stay and cost their time:\n{kept}",
            FoldingWarning,
            stacklevel=3,
        )
