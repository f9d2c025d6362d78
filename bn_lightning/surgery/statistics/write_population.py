"""Write population statistics in place of the running ones: all norms get theirs, or none does."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import NonFiniteError
from bn_lightning.surgery.statistics.recalibration_report import RecalibratedNorm
from bn_lightning.surgery.statistics.recalibration_warnings import listed
from bn_lightning.surgery.statistics.running_statistics import running_statistics


def write_population(
    norms: Mapping[str, _BatchNorm],
    estimates: Mapping[str, tuple[Tensor, Tensor]],
    counts: Mapping[str, int],
    *,
    broken: tuple[int, str] | None = None,
    loss: Callable[[], float | None] = lambda: None,
) -> tuple[tuple[RecalibratedNorm, ...], float | None]:
    """Write population statistics into the running buffers of all norms, or into none.

    Args:
        norms: The norms by path; their buffers are overwritten in place.
        estimates: Mean and variance of each, ``[C]``.
        counts: Values a channel that each estimate comes from.
        broken: Number of the first batch with NaN or infinity and the norm that saw it, for the message.
        loss: Called once they are written; on an exception the old statistics come back.

    Returns:
        How far each norm's statistics moved, and what `loss` returned.

    Raises:
        NonFiniteError: If an estimate is NaN or infinite, also only in the type of the buffer.

    Example:
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> moved, _ = write_population({"norm": norm}, {"norm": (torch.ones(1), torch.ones(1))}, {"norm": 10})
        >>> norm.running_mean.item(), round(moved[0].mean_drift, 4)
        (1.0, 1.0)
    """
    new: dict[str, tuple[Tensor, Tensor]] = {}
    old: dict[str, tuple[Tensor, Tensor]] = {}
    for name, norm in norms.items():
        mean, variance = running_statistics(norm)
        old[name] = mean.clone(), variance.clone()
        # Cast first: not every device holds float64.
        new[name] = estimates[name][0].to(mean.dtype), estimates[name][1].to(variance.dtype)
    bad = [name for name, values in new.items() if not all(value.isfinite().all() for value in values)]
    if bad:
        where = f" They first were in batch {broken[0]} (from 0), at {broken[1]!r}." if broken else ""
        raise NonFiniteError(
            f"The population statistics of {listed(bad)} are NaN or infinite, so all statistics were left as they "
            f"were.{where} Look for NaN in the data and in the weights."
        )
    loss_after = None
    written = False
    try:
        _copy(norms, new)
        loss_after = loss()
        written = True
    finally:
        if not written:
            _copy(norms, old)
    moved = tuple(
        RecalibratedNorm.from_change(name, counts[name], old[name], estimates[name], norm.eps)
        for name, norm in norms.items()
    )
    return moved, loss_after


def _copy(norms: Mapping[str, _BatchNorm], statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for name, norm in norms.items():
            for buffer, value in zip(running_statistics(norm), statistics[name], strict=True):
                buffer.copy_(value)
