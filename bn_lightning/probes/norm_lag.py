"""How far the running statistics of batch norms are from the batches that training normalises by.

A norm in training mode moves its running statistics from r to (1 − m)·r + m·b with every batch, where b are the
statistics of the batch and m is its momentum. So r before and after tell b, of every element and over all
ranks that a synchronised norm sees, without looking at a single activation. Of k batches in between it is the
mean, the later ones weighing more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class NormLag:
    """What one norm's batches say about its running statistics before them, which evaluation would have used.

    Attributes:
        norm: Path of the norm.
        momentum: Weight of a new batch in its running statistics; None for their plain mean over all batches.
        batches: How many batches were compared.
        initial_weight: What weight the buffers' first content, such as mean 0 and variance 1, still has in the running
            statistics: (1 − m)ⁿ after n batches. The comparison says nothing before this is small.
        shift: Median over channels of |μ_batch − μ_running|/√(σ²_running + ε).
        ratio: Median over channels of (σ²_batch + ε)/(σ²_running + ε), unbiased variances.
        broken: Channels with NaN or infinity in their running statistics, after which no batch ever mends.
    """

    norm: str
    momentum: float | None
    batches: int
    initial_weight: float
    shift: float
    ratio: float
    broken: int


class RunningStatisticsWatch:
    """Compares the batches between `begin` and `end` with the running statistics before them.

    Norms in evaluation mode, of momentum 0 or without running statistics have nothing to compare. Nothing of the model
    changes; it costs reading a few numbers a channel, whatever the batch is. In DistributedDataParallel, where
    rank zero's running statistics are used everywhere, only rank zero's comparison is of use.

    Args:
        model: Any module with batch norms; looked through once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> watch = RunningStatisticsWatch(model)
        >>> for step in range(50):
        ...     watch.begin()
        ...     _ = model(torch.randn(64, 2) + step)  # the data drift by a standard deviation a step
        >>> (lag,) = watch.end()
        >>> lag.norm, lag.initial_weight < 0.01, lag.shift > 1
        ('1', True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and isinstance(module.running_mean, Tensor)
            and not is_lazy(module.running_mean)
            and module.num_batches_tracked is not None
        }
        self._before: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self) -> None:
        """Note the running statistics as they are."""
        self._before = _statistics(list(self._norms.values())) if self._norms else None

    def end(self) -> tuple[NormLag, ...]:
        """Compare what has come since with what was noted; upon a second call there is nothing to compare.

        Returns:
            One entry for each norm that saw a batch in training mode.
        """
        if self._before is None:
            return ()
        norms = list(self._norms.items())
        channels = [norm.num_features for _, norm in norms]
        old, new = (_on_cpu(part, channels) for part in (self._before, _statistics([norm for _, norm in norms])))
        self._before = None
        lags = [_lag(name, norm, before, after) for (name, norm), before, after in zip(norms, old, new, strict=True)]
        return tuple(lag for lag in lags if lag is not None)


def _statistics(norms: Sequence[_BatchNorm]) -> tuple[Tensor, Tensor, Tensor]:
    # Joined, three small copies for all norms; a copy each would cost as much as a forward of small layers.
    device = norms[0].running_mean.device  # type: ignore[union-attr] # they have running statistics
    means, variances, batches = (
        [getattr(norm, name).reshape(-1) for norm in norms]
        for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    if any(mean.device != device for mean in means):
        device = torch.device("cpu")
        means, variances, batches = ([part.to(device) for part in parts] for parts in (means, variances, batches))
    return torch.cat(means), torch.cat(variances), torch.cat(batches)


def _on_cpu(parts: tuple[Tensor, Tensor, Tensor], channels: Sequence[int]) -> list[tuple[Tensor, Tensor, int]]:
    means, variances = (part.cpu().double().split(list(channels)) for part in parts[:2])
    return list(zip(means, variances, parts[2].tolist(), strict=True))


def _lag(
    name: str, norm: _BatchNorm, before: tuple[Tensor, Tensor, int], after: tuple[Tensor, Tensor, int]
) -> NormLag | None:
    seen, batches, momentum = before[2], after[2] - before[2], norm.momentum
    if batches < 1 or momentum == 0:
        return None
    # The weight that the running statistics of before have in those of after.
    kept = seen / after[2] if momentum is None else (1 - momentum) ** batches
    initial = float(seen == 0) if momentum is None else (1 - momentum) ** seen
    (mean, variance), usable = before[:2], torch.isfinite(torch.stack(before[:2])).all(0)
    broken = int((~usable).sum())
    mean, variance = mean[usable], variance[usable]
    batch_mean = (after[0][usable] - kept * mean) / (1 - kept)
    batch_variance = ((after[1][usable] - kept * variance) / (1 - kept)).clamp(min=0)
    scale = variance + norm.eps
    shift = ((batch_mean - mean).abs() / scale.sqrt()).median() if len(mean) else torch.tensor(math.nan)
    ratio = ((batch_variance + norm.eps) / scale).median() if len(mean) else torch.tensor(math.nan)
    return NormLag(name, momentum, batches, initial, float(shift), float(ratio), broken)
