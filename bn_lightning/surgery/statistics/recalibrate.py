"""Population statistics for every batch norm of a model, from batches."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import BatchSizeError, NoNormError
from bn_lightning.functional.population import BatchStatistics
from bn_lightning.surgery.forward import Forward, call_model
from bn_lightning.surgery.running.hooks import OWN_HOOKS
from bn_lightning.surgery.sandbox import sandbox
from bn_lightning.surgery.statistics.batch_progress import batch_progress
from bn_lightning.surgery.statistics.batch_statistics import BatchStatisticsCollector
from bn_lightning.surgery.statistics.estimators import (
    COUNTS_SINGLE_VALUES,
    FIXED_POINT_SAMPLES,
    Estimator,
    check_estimator,
    check_regroup,
    estimate,
)
from bn_lightning.surgery.statistics.momentum_average import MomentumAverage
from bn_lightning.surgery.statistics.norm_statistics import NormStatistics
from bn_lightning.surgery.statistics.ranks import Gather, gather_from_ranks, merge_over_ranks
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport, SkippedNorm
from bn_lightning.surgery.statistics.recalibration_targets import recalibration_targets
from bn_lightning.surgery.statistics.recalibration_warnings import listed, warn_of
from bn_lightning.surgery.statistics.regroup import regrouped
from bn_lightning.surgery.statistics.write_population import write_population

UNREACHED = "not reached by the forward"
SINGLE = "received a single value a channel, which has no variance"
TOO_SMALL_AT_START = 32
"""So many batches without one that is large enough, and the loader is taken to have none."""

Loss = Callable[[nn.Module], float | Tensor]


def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "pooled",
    forward: Forward | None = None,
    num_batches: int | None = None,
    regroup: int | None = None,
    loss: Loss | None = None,
    warn_drift: float | None = 1.0,
    progress: bool = False,
    stop_after_last_norm: bool = True,
    gather: Gather | None = None,
) -> RecalibrationReport:
    """Replace the running statistics of every batch norm by population statistics of `batches`.

    Source: Ioffe & Szegedy (2015), Algorithm 2, steps 7 to 12. Every norm normalises by its batch's own
    statistics, as in training; everything else (dropout, other norms) acts as in evaluation. With
    batches of m values a channel (m = N for ``[N, C]``, N·L for ``[N, C, L]``, N·H·W for ``[N, C, H, W]``):

    - ``"pooled"`` (default): the mean and variance of all values together, by the law of total variance:
      the size-weighted mean of the biased batch variances, plus the size-weighted variance of the batch
      means. A short batch weighs what it holds, and one with a single value a channel is normalised by the
      statistics of the others. The variance is not corrected by m/(m − 1): behind another norm the batch has
      already lost that degree of freedom, and the correction over-estimates by exactly that factor where m is
      small. Right for a network that was trained with batches of this size, small ones above all.
    - ``"paper"``: Algorithm 2 to the letter: E[x] = E_B[μ_B], Var[x] = m/(m − 1)·E_B[σ²_B]. Every batch weighs
      the same; a short last batch is corrected by its own m. Right for comparison with the paper, and
      elsewhere where m is in the hundreds.
    - ``"fixed_point"``: what the norms will receive in evaluation, where those before them use the very
      statistics that are asked for: batches are merged (`regroup`, 1024 samples by default) and pooled. It is exact
      where all of them fit into one batch (``report.batches == 1``). Right where evaluation statistics must
      be consistent with each other whatever the batch of training.
    - ``"ema"``: the running average, continued by a momentum step of each norm a batch, without moving a weight.
      Right where the momentum is small and the batches are many: it forgets old weights, and keeps the noise of
      about 1/momentum batches. Ranks average theirs.
    - ``"last_batches"``: the mean over the last batches of training, as training saw them. That needs somebody
      to watch training: `RecentBatchStatistics`, or ``BatchNormRecalibration(estimator="last_batches")``.

    All are summed in float64. On real digits, five norms, batches of 8, dropout 0.25 and 6 seeds the test loss was .277
    pooled, .309 at the fixed point, .353 by the paper, .358 by ema and .397 with the running average; at batches of 32
    all but the last came within .006 (`bn_lightning.surgery.statistics.estimators` has the table).

    A norm used several times in a forward pools all its uses. For the estimators that need the variance of each batch,
    a batch that brings some norm fewer than two values a channel is left out with a warning.

    Side effects: ``running_mean`` and ``running_var`` are overwritten in place. Nothing else changes: modes,
    ``num_batches_tracked``, momenta, other buffers, gradients, hooks and the global random state are as before,
    also after an exception or Ctrl-C, upon which the old statistics are back too. State that `forward` keeps
    outside of buffers is its own. The model runs without gradients, and without compilation.

    Norms that are frozen (in evaluation mode while the model as a whole is in training mode) keep their
    statistics and act by them. When the model is in evaluation mode, all norms are taken.

    Under ``torch.distributed`` every rank brings its own batches and gets the statistics of all of them; all
    ranks must call. The sums of all layers travel in one gather.

    Args:
        model: Any module with batch norms: ``BatchNorm1d`` to ``3d``, ``SyncBatchNorm`` or subclasses of these.
        batches: Batches of the training data, best in the size and order of training; of another domain's data, the
            model is adapted to that domain (AdaBN; Li et al., 2016).
        estimator: See above.
        forward: ``forward(model, batch)`` runs the model on a batch. Without it a tensor runs as ``model(batch)``, a
            list or tuple as ``model(batch[0])``, a mapping as ``model(**batch)``, moved to the model's device.
        num_batches: Take at most so many batches (of each rank); all of them when None.
        regroup: Merge consecutive batches up to so many samples before they run (see `regrouped` for what can be
            merged). Small batches take about half the time so. A network then gets the statistics of the
            larger batches, which are nearer those of evaluation, and further from those it was trained with: behind a
            norm the two differ by the order of 1/m, so at 32 samples and more either will do.
        loss: Called with the model in evaluation mode before and after; what it returns goes into the report. With
            data that was held out, lower is better.
        warn_drift: Warn of norms whose mean moved by more than so many σ, or whose σ moved by more than the factor 1 +
            `warn_drift`, unless a tenth of their running average still is what it was at construction; never when None.
        progress: Show a progress bar on standard error.
        stop_after_last_norm: Do not compute what follows the last norm, where each norm runs just once in
            a forward and no module has hooks but those of inserted norms. The batches 1, 2, 4, 8, … run to
            the end, to see that this holds. What `forward` does with the output then happens for these only.
        gather: Collects one float64 vector of each rank: ``gather(vector) -> [vector of rank 0, …]``. By
            default the default group of ``torch.distributed``, if there is one.

    Returns:
        What was estimated from how much, how far each norm's statistics moved, which were skipped, and the loss.

    Raises:
        NoNormError: If there is no norm to estimate for, or the forward reaches none.
        BatchSizeError: If no batch, or none of the first 32, brings every norm that it reaches two values a channel.
        NonFiniteError: If an estimate is NaN or infinite; nothing is written then. It names the first batch and norm.
        UnknownNameError: If there is no such estimator.
        TypeError: If `batches` is a single batch, a batch has no default and `forward` is not given, or
            batches are to be merged and cannot be.
        ValueError: If there are no batches, `num_batches` is not positive, or `estimator` cannot do with `regroup`, or
            not without having watched training.
        RuntimeError: If another rank failed, or a lazy norm has not been initialised.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
        >>> batches = torch.randn(10, 8, 2, generator=torch.Generator().manual_seed(0))
        >>> report = recalibrate_batch_norm(model, list(batches))
        >>> report.batches, report.layers[0].layer, report.layers[0].count
        (10, '1', 80)
        >>> expected = model[0](batches.flatten(0, 1))
        >>> torch.testing.assert_close(model[1].running_mean, expected.mean(0))
        >>> torch.testing.assert_close(model[1].running_var, expected.var(0, correction=0))
    """
    check_estimator(estimator)
    if estimator == "last_batches":
        raise ValueError(
            'estimator="last_batches" is the mean over batches as training saw them. Watch training with '
            'RecentBatchStatistics(model) or BatchNormRecalibration(estimator="last_batches"), or choose another.'
        )
    check_regroup(estimator, regroup)
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches={num_batches} leaves no batch to estimate from; give a positive number or None.")
    if isinstance(batches, Tensor | Mapping):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which would be taken apart; for a single batch pass [batch]."
        )
    norms, skipped = recalibration_targets(model)
    foreign_hooks = any(
        hook not in OWN_HOOKS
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    layers = [
        NormStatistics(name, norm, average=MomentumAverage(norm) if estimator == "ema" else None)
        for name, norm in norms.items()
    ]
    collector = BatchStatisticsCollector(layers, may_stop=stop_after_last_norm and not foreign_hooks)
    if estimator == "fixed_point" and regroup is None:
        regroup = FIXED_POINT_SAMPLES
    failure, left_out, loss_before = None, 0, None
    try:
        loss_before = _evaluate(model, loss)
        with (
            sandbox(model),
            torch.inference_mode(False),
            torch.no_grad(),
            collector.attached(),
            batch_progress(batches, num_batches=num_batches, shown=progress) as shown,
        ):
            source: Iterable[Any] = islice(shown, num_batches)
            if regroup is not None:
                source = regrouped(source, regroup)
            left_out = _collect(collector, model, source, forward, settle=estimator in COUNTS_SINGLE_VALUES)
        collector.reduce()
    except Exception as error:
        # The other ranks wait in the gather; they are told before this rank gives up.
        failure = error
    totals, batches_used, left_out = merge_over_ranks(
        [_sums(layer) for layer in layers],
        [layer.channels for layer in layers],
        counters=(collector.accepted, left_out),
        failure=failure,
        gather=gather or gather_from_ranks(model),
    )
    if not batches_used:
        raise ValueError("There were no batches, so the statistics were left as they were; look at the data loader.")
    everything = dict(zip(norms, totals, strict=True))
    seen = {name: total for name, total in everything.items() if total.count > 1}
    if not seen:
        raise NoNormError(
            f"The forward reached none of the batch norms {listed(norms)} with two values a channel, so there is "
            "nothing to estimate from; check what is run with forward=."
        )
    estimates = {name: estimate(estimator, total) for name, total in seen.items()}
    skipped += [
        SkippedNorm(name, SINGLE if total.count else UNREACHED)
        for name, total in everything.items()
        if name not in seen
    ]
    counts = {name: int(total.count) for name, total in seen.items()}
    moved, loss_after = write_population(
        {name: norms[name] for name in seen},
        estimates,
        counts,
        broken=collector.first_broken,
        loss=partial(_evaluate, model, loss),
    )
    report = RecalibrationReport(
        estimator, batches_used, left_out, moved, tuple(skipped), loss_before=loss_before, loss_after=loss_after
    )
    young = [name for name, norm in norms.items() if _is_young(norm)]
    stopped = collector.stopped if collector.calls_vary else 0
    warn_of(report, warn_drift=warn_drift, young=young, stopped=stopped)
    return report


def _evaluate(model: nn.Module, loss: Loss | None) -> float | None:
    if loss is None:
        return None
    with sandbox(model), torch.no_grad():
        for module in model.modules():
            module.training = False
        return float(loss(model))


def _is_young(norm: _BatchNorm) -> bool:
    """Whether the running average still is in large part what it was at construction, so that it has to move."""
    batches = 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    return (1 / (batches + 1) if norm.momentum is None else (1 - norm.momentum) ** batches) > 0.1


def _collect(
    collector: BatchStatisticsCollector,
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None,
    *,
    settle: bool,
) -> int:
    for module in model.modules():
        module.training = False
    for layer in collector.layers:
        layer.norm.training = True
    held: list[tuple[int, Callable[[], Any]]] = []
    first_small: tuple[str, tuple[int, ...]] | None = None
    for number, batch in enumerate(batches):
        run = partial(call_model, model, batch, forward)
        if collector.run(run, number):
            continue
        held.append((number, run))
        first_small = first_small or collector.too_small
        if not collector.accepted and len(held) == TOO_SMALL_AT_START:
            break
    if held and not collector.accepted:
        name, shape = first_small or ("", ())
        raise BatchSizeError(
            f"None of {len(held)} batches brought every norm that it reached two values a channel, without which there "
            f"is no variance; in the first of them the norm {name!r} received an input of shape {shape}. Use larger "
            "batches, or merge these by regroup=."
        )
    if not (settle and held):
        return len(held)
    collector.settle(held)
    return 0


def _sums(layer: NormStatistics) -> BatchStatistics | None:
    if layer.average is None or layer.sums is None:
        return layer.sums
    return layer.average.in_place_of(layer.sums)
