"""What a recalibration has to warn of."""

import warnings
from collections.abc import Collection, Iterable

from bn_lightning.errors import StatisticsWarning
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport
from bn_lightning.surgery.statistics.recalibration_targets import FROZEN, UNTRACKED

REMEDIES = {
    FROZEN: "Put them in training mode to include them.",
    # Nothing to remedy: such norms use their batch in evaluation too, and the report names them.
    UNTRACKED: "",
}
OTHER_REMEDY = "They keep their old statistics; check what is run with forward=."


def warn_of(report: RecalibrationReport, *, warn_drift: float | None, young: Collection[str], stopped: int) -> None:
    """Warn of norms that were skipped or moved far, and of batches that count for less than they should.

    Args:
        report: What was done.
        warn_drift: How far is far, in σ; None for nothing is.
        young: Norms whose old statistics were near those of construction, so that they had to move.
        stopped: Forwards that were stopped although norms run more than once in some; 0 for none.
    """
    by_reason: dict[str, list[str]] = {}
    for norm in report.skipped:
        by_reason.setdefault(norm.reason, []).append(norm.layer)
    for reason, names in by_reason.items():
        remedy = REMEDIES.get(reason, OTHER_REMEDY)
        if remedy:
            _warn(f"Batch norms {listed(names)} were skipped: {reason}. {remedy}")
    if report.left_out:
        _warn(
            f"{report.left_out} of {report.batches + report.left_out} batches were left out: some norm received fewer "
            f"than two values a channel, which have no variance, and estimator={report.estimator!r} needs that of "
            "every batch. Use drop_last=True or another batch size."
        )
    if stopped:
        _warn(
            f"The model does not call each of its norms once in every forward, yet {stopped} forwards were "
            "stopped after the last norm, so later calls are missing. Run again with stop_after_last_norm=False."
        )
    far = [] if warn_drift is None else [norm for norm in report.far(warn_drift) if norm.layer not in young]
    if far:
        furthest = max(far, key=lambda norm: norm.mean_drift)
        _warn(
            f"The statistics of {listed(norm.layer for norm in far)} moved far: the mean of {furthest.layer!r} by "
            f"{furthest.mean_drift:.3g} σ, its log variance by {furthest.log_variance_ratio:+.3g}. Either the old "
            "ones were stale, or the batches are not what the model was trained on; compare the evaluation loss "
            "before and after (loss=). warn_drift=None says nothing."
        )


def listed(names: Iterable[str]) -> str:
    """Names for a message.

    Args:
        names: Paths of norms.

    Returns:
        Them in quotes, with commas.

    Example:
        >>> listed(["body.1", "head.0"])
        "'body.1', 'head.0'"
    """
    return ", ".join(repr(name) for name in names)


def _warn(message: str) -> None:
    # The frame of whoever called recalibrate_batch_norm.
    warnings.warn(message, StatisticsWarning, stacklevel=4)
