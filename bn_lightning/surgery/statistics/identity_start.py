"""Let inserted norms start as the identity, so that a pretrained network keeps its function."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import BatchSizeError, InsertionWarning, NoNormError, StatisticsWarning
from bn_lightning.surgery.forward import Forward, call_model
from bn_lightning.surgery.sandbox import sandbox
from bn_lightning.surgery.statistics.identity_norms import (
    inserted_batch_norms,
    keeps_function,
    make_identity,
    statistics_of_norm,
)
from bn_lightning.surgery.statistics.norm_statistics import BATCHES_A_REDUCTION, NormStatistics
from bn_lightning.surgery.statistics.ranks import Gather, gather_from_ranks, merge_over_ranks
from bn_lightning.surgery.statistics.recalibrate import UNREACHED
from bn_lightning.surgery.statistics.recalibration_report import RecalibratedNorm, RecalibrationReport, SkippedNorm


def start_as_identity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    num_batches: int | None = None,
    gather: Gather | None = None,
) -> RecalibrationReport:
    """Give every inserted norm the statistics, scale and shift with which it hands its input on unchanged.

    Source: Ioffe & Szegedy (2015), section 3: with γ = √Var[x] and β = E[x] the transform y = γ·x̂ + β recovers
    the original activations. Algorithm 1 divides by √(σ² + ε), so here γ = √(σ² + ε), which holds for dead
    channels (σ² = 0) too. μ and σ² (over n, not n − 1) are the mean and variance of all values of `batches`, of
    m = N values a channel in each for ``[N, C]``, N·L for ``[N, C, L]``, N·H·W for ``[N, C, H, W]``; the uses of a
    norm are pooled.

    In evaluation mode the model then computes what it did before insertion, to rounding. In training mode a norm
    uses its batch's statistics, so the output differs from that by as much as a batch differs from all batches.

    All norms are estimated in one pass, in which each hands its input on: so every one receives the activations
    of the original network, and as none changes the function, it will receive the same when all are written. The
    pass runs in evaluation mode (no dropout, hand-written norms by their running statistics), so a batch may hold a
    single sample.

    Side effects: of the inserted norms, ``running_mean``, ``running_var``, ``weight`` and ``bias`` are overwritten in
    place. Biases that insertion froze stay frozen and keep their values, and everything else is as before (as for
    `recalibrate_batch_norm`), also after an exception or Ctrl-C, upon which the norms are as they were too.

    Under ``torch.distributed`` every rank brings its own batches and gets the statistics of all of them; all
    ranks must call.

    Args:
        model: A module with inserted norms, right after insertion.
        batches: Batches of the training data.
        forward: ``forward(model, batch)`` runs the model on a batch; by default as in `recalibrate_batch_norm`.
        num_batches: Take at most so many batches (of each rank); all of them when None.
        gather: Collects one float64 vector of each rank; by default by ``torch.distributed``, if there is a group.

    Returns:
        From how much the statistics were estimated, how far they moved, and which norms the forward did not
        reach: these became the identity by the statistics they had.

    Raises:
        NoNormError: If the model has no inserted norms, or the forward reaches none of them.
        BatchSizeError: If a norm received a single value a channel from all batches.
        NonFiniteError: If a statistic is NaN or infinite; nothing is written then.
        TypeError: If `batches` is a single batch, or a batch has no default and `forward` is not given.
        ValueError: If an inserted norm is no batch norm, has no scale and shift, keeps no running statistics or does
            more than to normalise, scale and shift; if there are no batches, or `num_batches` is not positive.
        RuntimeError: If another rank failed.

    Example:
        >>> from bn_lightning import insert_batch_norm
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        >>> batches = torch.randn(10, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> before = model(batches[0])
        >>> plan = insert_batch_norm(model, (batches[0],))
        >>> start_as_identity(model, list(batches)).layers[0].count
        160
        >>> torch.testing.assert_close(model(batches[0]), before)
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches={num_batches} leaves no batch to estimate from; give a positive number or None.")
    if isinstance(batches, Tensor | Mapping):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which would be taken apart; for a single batch pass [batch]."
        )
    model = getattr(model, "_orig_mod", model)
    norms = inserted_batch_norms(model)
    layers = [NormStatistics(name, norm) for name, norm in norms.items()]
    failure, used = None, 0
    try:
        with sandbox(model), torch.inference_mode(False), torch.no_grad(), _handing_on(layers):
            for module in model.modules():
                module.training = False
            for batch in islice(batches, num_batches):
                call_model(model, batch, forward)
                used += 1
        for layer in layers:
            layer.reduce()
    except Exception as error:
        # The other ranks wait in the gather; they are told before this rank gives up.
        failure = error
    totals, used, _ = merge_over_ranks(
        [layer.sums for layer in layers],
        [layer.channels for layer in layers],
        counters=(used, 0),
        failure=failure,
        gather=gather or gather_from_ranks(model),
    )
    if not used:
        raise ValueError("There were no batches, so the norms were left as they were; look at the data loader.")
    counts = {name: int(total.count) for name, total in zip(norms, totals, strict=True)}
    unreached = [name for name, count in counts.items() if count == 0]
    if len(unreached) == len(norms):
        raise NoNormError(
            f"The forward reached none of the inserted norms {_listed(unreached)}, so there is nothing to estimate "
            "from; check what is run with forward=."
        )
    single = [name for name, count in counts.items() if count == 1]
    if single:
        raise BatchSizeError(
            f"The norms {_listed(single)} received a single value a channel from {used} batch(es), which has no "
            "variance, so the norms were left as they were. Use more or larger batches."
        )
    estimates = {name: total.pooled() for name, total in zip(norms, totals, strict=True) if total.count > 0}
    trained = [name for name, norm in norms.items() if not keeps_function(norm)]
    old = {name: statistics_of_norm(norm) for name, norm in norms.items()}
    make_identity(model, {**old, **estimates})
    if trained:
        warnings.warn(
            f"The norms {_listed(trained)} had a trained scale and shift, which were overwritten; the model now "
            "computes what it does without its inserted norms.",
            InsertionWarning,
            stacklevel=2,
        )
    if unreached:
        warnings.warn(
            f"The norms {_listed(unreached)} were {UNREACHED}, so they became the identity by the statistics they had; "
            "check what is run with forward=.",
            StatisticsWarning,
            stacklevel=2,
        )
    moved = tuple(
        RecalibratedNorm.from_change(name, counts[name], old[name], estimate, norms[name].eps)
        for name, estimate in estimates.items()
    )
    return RecalibrationReport("pooled", used, 0, moved, tuple(SkippedNorm(name, UNREACHED) for name in unreached))


@contextmanager
def _handing_on(layers: Sequence[NormStatistics]) -> Iterator[None]:
    """Every norm notes the statistics of its input and returns that, until the block is left."""
    replaced: list[tuple[dict[str, Any], Any]] = []
    try:
        for layer in layers:
            attributes = vars(layer.norm)
            replaced.append((attributes, attributes.get("forward")))
            attributes["forward"] = partial(_note, layer)
        # A compiled graph would not see the replaced forwards.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for attributes, forward in replaced:
            attributes.pop("forward", None)
            if forward is not None:
                attributes["forward"] = forward


def _note(layer: NormStatistics, input: Tensor) -> Tensor:
    count = input.numel() // layer.channels
    if count == 0:  # as an expert that received no token
        return input
    axes = [axis for axis in range(input.dim()) if axis != 1]
    variance, mean = torch.var_mean(input.detach().to(layer.dtype), axes, correction=0)
    mean_row, variance_row = layer.new_row(count)
    mean_row.copy_(mean)
    # Rows hold the unbiased variance, which a single value does not have; it adds no squared distance.
    variance_row.copy_(variance * (count / max(count - 1, 1)))
    if len(layer.counts) >= BATCHES_A_REDUCTION:
        layer.reduce()
    return input


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
