"""Population statistics for every batch norm of a model, from batches."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bn_lightning.errors import BatchSizeError, NonFiniteError, NoNormError, StatisticsWarning, UnknownNameError
from bn_lightning.functional.population import BatchStatistics
from bn_lightning.surgery.batch_statistics import BatchStatisticsCollector
from bn_lightning.surgery.forward import Forward, call_model
from bn_lightning.surgery.hooks import OWN_HOOKS
from bn_lightning.surgery.ranks import Gather, gather_from_ranks, merge_over_ranks
from bn_lightning.surgery.recalibration_report import RecalibratedNorm, RecalibrationReport, SkippedNorm
from bn_lightning.surgery.running_statistics import running_statistics
from bn_lightning.surgery.sandbox import sandbox

Estimator = Literal["pooled", "paper"]

FROZEN = "frozen: in evaluation mode while the model is in training mode"
UNTRACKED = "keeps no running statistics (track_running_stats=False)"
UNREACHED = "not reached by the forward"


def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "pooled",
    forward: Forward | None = None,
    num_batches: int | None = None,
    stop_after_last_norm: bool = True,
    gather: Gather | None = None,
) -> RecalibrationReport:
    """Replace the running statistics of every batch norm by population statistics of `batches`.

    Source: Ioffe & Szegedy (2015), Algorithm 2, steps 7 to 12. Every norm normalises by its batch's own
    statistics, as in training; everything else (dropout, other norms) acts as in evaluation. With
    batches of m values a channel (m = N for ``[N, C]``, N·L for ``[N, C, L]``, N·H·W for ``[N, C, H, W]``):

    - ``"pooled"`` (default): the mean and variance of all values together, by the law of total variance:
      the size-weighted mean of the biased batch variances, plus the size-weighted variance of the batch
      means. A short last batch weighs what it holds. The variance is not corrected by m/(m − 1):
      behind another norm the batch has already lost that degree of freedom, and the correction
      over-estimates by exactly that factor where m is small.
    - ``"paper"``: Algorithm 2 to the letter: E[x] = E_B[μ_B], Var[x] = m/(m − 1)·E_B[σ²_B]. Every batch weighs
      the same; a short last batch is corrected by its own m.

    Both are summed in float64. A norm used several times in a forward pools all its uses. A batch that
    brings some norm fewer than two values a channel has no variance and is left out with a warning.

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
        batches: Batches of the training data, best in the size and order of training.
        estimator: ``"pooled"`` or ``"paper"``, see above.
        forward: ``forward(model, batch)`` runs the model on a batch. Without it a tensor runs as ``model(batch)``, a
            list or tuple as ``model(batch[0])``, a mapping as ``model(**batch)``, moved to the model's device.
        num_batches: Take at most so many batches (of each rank); all of them when None.
        stop_after_last_norm: Do not compute what follows the last norm, where each norm runs just once in
            a forward and no module has hooks but those of inserted norms. The batches 1, 2, 4, 8, … run to
            the end, to see that this holds. What `forward` does with the output then happens for these only.
        gather: Collects one float64 vector of each rank: ``gather(vector) -> [vector of rank 0, …]``. By
            default the default group of ``torch.distributed``, if there is one.

    Returns:
        What was estimated from how much, how far each norm's statistics moved, and which were skipped.

    Raises:
        NoNormError: If there is no norm to estimate for, or the forward reaches none.
        BatchSizeError: If the first batch has fewer than two values a channel at some norm.
        NonFiniteError: If an estimate is NaN or infinite; nothing is written then.
        UnknownNameError: If there is no such estimator.
        TypeError: If `batches` is a single batch, or a batch has no default and `forward` is not given.
        ValueError: If there are no batches, or `num_batches` is not positive.
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
    if estimator not in get_args(Estimator):
        raise UnknownNameError(f"There is no estimator {estimator!r}; choose one of {', '.join(get_args(Estimator))}.")
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches={num_batches} leaves no batch to estimate from; give a positive number or None.")
    if isinstance(batches, Tensor | Mapping):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which would be taken apart; for a single batch pass [batch]."
        )
    norms, skipped = _select(model)
    foreign_hooks = any(
        hook not in OWN_HOOKS
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    collector = BatchStatisticsCollector(norms, may_stop=stop_after_last_norm and not foreign_hooks)
    failure, left_out = None, 0
    try:
        with sandbox(model), torch.inference_mode(False), torch.no_grad(), collector.attached():
            left_out = _collect(collector, model, islice(batches, num_batches), forward)
        collector.reduce()
    except Exception as error:
        # The other ranks wait in the gather; they are told before this rank gives up.
        failure = error
    totals, batches_used, left_out = merge_over_ranks(
        [layer.sums for layer in collector.layers],
        [layer.channels for layer in collector.layers],
        counters=(collector.accepted, left_out),
        failure=failure,
        gather=gather or gather_from_ranks(model),
    )
    if not batches_used:
        raise ValueError("There were no batches, so the statistics were left as they were; look at the data loader.")
    seen = {name: total for name, total in zip(norms, totals, strict=True) if total.count > 0}
    unreached = [name for name in norms if name not in seen]
    if not seen:
        raise NoNormError(
            f"The forward reached none of the batch norms {_listed(unreached)}, so there is nothing to estimate from; "
            "check what is run with forward=."
        )
    estimates = {name: (total.pooled() if estimator == "pooled" else total.paper()) for name, total in seen.items()}
    layers = _write({name: norms[name] for name in seen}, estimates, seen)
    skipped += [SkippedNorm(name, UNREACHED) for name in unreached]
    report = RecalibrationReport(estimator, batches_used, left_out, tuple(layers), tuple(skipped))
    _warn(report, collector)
    return report


def _select(model: nn.Module) -> tuple[dict[str, _BatchNorm], list[SkippedNorm]]:
    norms: dict[str, _BatchNorm] = {}
    skipped: list[SkippedNorm] = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise RuntimeError(
                f"The norm {name!r} ({type(module).__name__}) has not been initialised; run the model on a batch first."
            )
        if not module.track_running_stats or module.running_mean is None or module.running_var is None:
            skipped.append(SkippedNorm(name, UNTRACKED))
        elif model.training and not module.training:
            skipped.append(SkippedNorm(name, FROZEN))
        else:
            norms[name] = module
    if norms:
        return norms, skipped
    if skipped:
        reasons = "; ".join(f"{norm.layer!r}: {norm.reason}" for norm in skipped)
        raise NoNormError(f"No batch norm of {type(model).__name__} can be recalibrated. {reasons}.")
    raise NoNormError(
        f"{type(model).__name__} has no batch norm (no instance of torch's BatchNorm or SyncBatchNorm); "
        "insert_batch_norm puts them in."
    )


def _collect(
    collector: BatchStatisticsCollector, model: nn.Module, batches: Iterable[Any], forward: Forward | None
) -> int:
    for module in model.modules():
        module.training = False
    for layer in collector.layers:
        layer.norm.training = True
    left_out = 0
    for batch in batches:
        if collector.run(partial(call_model, model, batch, forward)):
            continue
        left_out += 1
        name, shape = collector.too_small or ("", ())
        if not collector.accepted:
            raise BatchSizeError(
                f"The norm {name!r} received an input of shape {shape} in the first batch: fewer than two values a "
                "channel have no variance. Use larger batches."
            )
    return left_out


def _write(
    norms: Mapping[str, _BatchNorm],
    estimates: Mapping[str, tuple[Tensor, Tensor]],
    totals: Mapping[str, BatchStatistics],
) -> list[RecalibratedNorm]:
    new: dict[str, tuple[Tensor, Tensor]] = {}
    old: dict[str, tuple[Tensor, Tensor]] = {}
    for name, norm in norms.items():
        mean, variance = running_statistics(norm)
        old[name] = mean.clone(), variance.clone()
        # Cast first: not every device holds float64.
        new[name] = estimates[name][0].to(mean.dtype), estimates[name][1].to(variance.dtype)
    broken = [name for name, values in new.items() if not all(value.isfinite().all() for value in values)]
    if broken:
        raise NonFiniteError(
            f"The population statistics of {_listed(broken)} are NaN or infinite, so all statistics were left as they "
            "were; look for NaN in the data and in the weights."
        )
    written = False
    try:
        _copy(norms, new)
        written = True
    finally:
        if not written:
            _copy(norms, old)
    return [
        RecalibratedNorm.from_change(name, int(totals[name].count), old[name], estimates[name], norm.eps)
        for name, norm in norms.items()
    ]


def _copy(norms: Mapping[str, _BatchNorm], statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for name, norm in norms.items():
            for buffer, value in zip(running_statistics(norm), statistics[name], strict=True):
                buffer.copy_(value)


def _warn(report: RecalibrationReport, collector: BatchStatisticsCollector) -> None:
    by_reason: dict[str, list[str]] = {}
    for norm in report.skipped:
        by_reason.setdefault(norm.reason, []).append(norm.layer)
    remedies = {
        FROZEN: "Put them in training mode to include them.",
        UNREACHED: "They keep their old statistics; check what is run with forward=.",
    }
    for reason, remedy in remedies.items():
        if reason in by_reason:
            message = f"Batch norms {_listed(by_reason[reason])} were skipped: {reason}. {remedy}"
            warnings.warn(message, StatisticsWarning, stacklevel=3)
    if report.left_out:
        warnings.warn(
            f"{report.left_out} of {report.batches + report.left_out} batches were left out: some norm received fewer "
            "than two values a channel, which have no variance. Use drop_last=True or another batch size.",
            StatisticsWarning,
            stacklevel=3,
        )
    if collector.calls_vary:
        warnings.warn(
            f"The model does not call each of its norms once in every forward, yet {collector.stopped} forwards were "
            "stopped after the last norm, so later calls are missing. Run again with stop_after_last_norm=False.",
            StatisticsWarning,
            stacklevel=3,
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
