"""What a sample of an activation says about all of it: moments, percentiles and how sure they are.

A summary is made from the elements read in one call (`functional.summarise`) and merged over calls,
steps and ranks. Each call counts with all the elements it stands for, not with those read, so uneven
batches pool right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from bn_lightning.functional.moments import Moments, merge_moments
from bn_lightning.functional.quantiles import percentiles


@dataclass(frozen=True)
class ActivationSummary:
    """Moments per channel, weighted samples and the non-finite count of one layer's activation.

    Args:
        moments: Per channel `[C]`; `count` is the number of finite elements the channel stands for, 0 where none
            of it was read.
        values: The finite elements kept for percentiles, `[S]`, in the type in which they were read.
        weights: How many elements each of them stands for, float64 `[S]`.
        sampled: How many finite elements were read; the moments come from these unless `extremes` are known.
        elements: All elements there were, counted exactly; each channel has an equal share of them.
        channel_nonfinite: NaN and infinities among all elements of each channel, counted exactly, int64 `[C]`; they
            enter nothing else.
        extremes: Least and greatest finite element of each channel, float64 `[2, C]`, where all elements were
            looked at; a channel without a finite element has (inf, -inf). None where only a sample was read.
        channel: The channel of each of `values`, int64 `[S]`; None where it was not kept.
    """

    moments: Moments
    values: Tensor
    weights: Tensor
    sampled: int
    elements: int
    channel_nonfinite: Tensor
    extremes: Tensor | None = None
    channel: Tensor | None = None

    @cached_property
    def nonfinite(self) -> int:
        """NaN and infinities among all elements, counted exactly."""
        return int(self.channel_nonfinite.sum())

    @property
    def count(self) -> int:
        """How many finite elements there were, counted exactly."""
        return self.elements - self.nonfinite

    @property
    def channel_count(self) -> Tensor:
        """How many finite elements each channel had, counted exactly, int64 `[C]`."""
        return self.elements // len(self.channel_nonfinite) - self.channel_nonfinite

    @cached_property
    def _pooled(self) -> Float64[np.ndarray, "5"]:
        return pool_channels(self.moments)

    @cached_property
    def is_uniform(self) -> bool:
        """Whether every kept element stands for equally many, up to rounding."""
        low, high = self.weights.aminmax() if len(self.weights) else (1.0, 1.0)
        return bool(high - low <= 1e-9 * high)

    @property
    def mean(self) -> float:
        """Mean over all elements; NaN where nothing was recorded."""
        return float(self._pooled[1]) if self.sampled else math.nan

    @property
    def variance(self) -> float:
        """Biased variance over all elements: the mean squared distance from `mean`."""
        return float(self._pooled[2] / self._pooled[0]) if self.sampled and self._pooled[0] else math.nan

    @property
    def skewness(self) -> float:
        """Skewness over all elements; NaN where nothing was recorded, or all elements are equal."""
        count, _, m2, m3, _ = self._pooled
        with np.errstate(all="ignore"):
            return float(np.sqrt(count) * m3 / m2**1.5) if m2 else math.nan

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis over all elements; NaN where nothing was recorded, or all elements are equal."""
        count, _, m2, _, m4 = self._pooled
        with np.errstate(all="ignore"):
            return float(count * m4 / m2**2 - 3) if m2 else math.nan

    def percentiles(self, q: Sequence[float | int]) -> list[float]:
        """Percentiles of the kept elements.

        Linear between order statistics while every element stands for equally many, else the
        weighted inverse distribution function (see `quantiles.percentiles`).

        Args:
            q: Percentages between 0 and 100.

        Returns:
            One value each, in the order of `q`; NaN where nothing was recorded.
        """
        if len(self.values) == 0:
            return [math.nan] * len(q)
        return percentiles(self.values, q, None if self.is_uniform else self.weights).tolist()

    @property
    def is_exact(self) -> bool:
        """Whether moments and extremes come from all elements, whatever the percentiles come from."""
        return self.extremes is not None

    def mean_error(self) -> float:
        """Standard error of `mean` that comes from reading a sample only; 0 if all was read.

        The root of variance/k · (1 − k/n) for k of n elements read (Cochran 1977, section 2.6). The
        lattice is spread more evenly than a random draw, so this errs on the large side.
        """
        if self.is_exact:
            return 0.0 if self.sampled else math.nan
        return math.sqrt(self.variance / self.sampled) * self._unread() if self.sampled else math.nan

    def variance_error(self) -> float:
        """Standard error of `variance` that comes from reading a sample only.

        Variance · √((kurtosis − 1)/k · (1 − k/n)), with the fourth standardised moment as kurtosis.
        """
        if not self.sampled or self.variance == 0 or self.is_exact:
            return 0.0 if self.sampled else math.nan
        return self.variance * math.sqrt(max(self.kurtosis + 2, 0) / self.sampled) * self._unread()

    def percentile_errors(self, q: Sequence[float | int]) -> list[float]:
        """Standard errors of `percentiles` that come from reading a sample only.

        Half the distance between the percentiles one standard error of the rank below and above
        (Woodruff 1952): no distribution is assumed. Around 5 % of the standard deviation at 1,000
        normal values.

        Args:
            q: Percentages between 0 and 100.

        Returns:
            One error each, in the unit of the activation.
        """
        if len(self.values) == 0:
            return [math.nan] * len(q)
        spread = [100 * math.sqrt(p / 100 * (1 - p / 100) / self.sampled) * self._unread() for p in q]
        low = self.percentiles([max(p - d, 0) for p, d in zip(q, spread, strict=True)])
        high = self.percentiles([min(p + d, 100) for p, d in zip(q, spread, strict=True)])
        return [(above - below) / 2 for below, above in zip(low, high, strict=True)]

    def _unread(self) -> float:
        return math.sqrt(max(1 - self.sampled / self.count, 0.0))


def empty_summary(channels: int) -> ActivationSummary:
    """A summary of nothing, from which merging starts.

    Args:
        channels: Length of the channel axis.

    Returns:
        A summary with all counts 0.
    """
    zeros = torch.zeros(channels, dtype=torch.float64)
    moments = Moments(zeros.long(), zeros, zeros, zeros, zeros)
    extremes = torch.stack([zeros + math.inf, zeros - math.inf])
    return ActivationSummary(moments, zeros[:0], zeros[:0], 0, 0, zeros.long(), extremes, zeros[:0].long())


def merge_summaries(first: ActivationSummary, second: ActivationSummary) -> ActivationSummary:
    """The summary of both activations together.

    Args:
        first: One part: a call, a step or a rank.
        second: Another, of the same layer.

    Returns:
        Their union; moments merge pairwise (Chan, Golub & LeVeque 1983; Pébay 2008).

    Raises:
        ValueError: If the two have different numbers of channels.

    Example:
        >>> from bn_lightning.functional.summarise import summarise
        >>> part = summarise(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), channels=1, elements=2)
        >>> merge_summaries(part, empty_summary(1)).mean, merge_summaries(part, part).count
        (2.0, 4)
    """
    channels = len(first.moments.mean), len(second.moments.mean)
    if channels[0] != channels[1]:
        raise ValueError(
            f"Activations of {channels[0]} and {channels[1]} channels are not of one layer and cannot be merged."
        )
    if not first.elements:
        return second
    if not second.elements:
        return first
    extremes = None
    if first.extremes is not None and second.extremes is not None:
        low, high = torch.minimum(first.extremes, second.extremes)[0], torch.maximum(first.extremes, second.extremes)[1]
        extremes = torch.stack([low, high])
    channel = None
    if first.channel is not None and second.channel is not None:
        channel = torch.cat([first.channel, second.channel])
    return ActivationSummary(
        merge_moments(first.moments, second.moments),
        torch.cat([first.values, second.values]),
        torch.cat([first.weights, second.weights]),
        first.sampled + second.sampled,
        first.elements + second.elements,
        first.channel_nonfinite + second.channel_nonfinite,
        extremes,
        channel,
    )


def pool_channels(moments: Moments) -> Float64[np.ndarray, "5"]:
    """Count, mean and central sums of powers 2 to 4 over all channels together.

    Args:
        moments: Per channel, `[C]`.

    Returns:
        The five numbers.

    Example:
        >>> one, two = torch.tensor([1, 1]), torch.tensor([2.0, 4.0], dtype=torch.float64)
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> pool_channels(Moments(one, two, zero, zero, zero)).tolist()
        [2.0, 3.0, 2.0, 0.0, 2.0]
    """
    # In NumPy, where an operation on some hundred numbers costs a tenth of torch's.
    parts = (moments.count, moments.mean, moments.m2, moments.m3, moments.m4)
    count, means, m2, m3, m4 = (part.cpu().numpy().astype(np.float64) for part in map(torch.as_tensor, parts))
    total = count.sum()
    mean = count.dot(means) / max(total, 1)
    d = means - mean
    square, distant = d * d, count * d * d
    powers = (
        m2.sum() + distant.sum(),
        m3.sum() + 3 * d.dot(m2) + distant.dot(d),
        m4.sum() + 4 * d.dot(m3) + 6 * square.dot(m2) + distant.dot(square),
    )
    return np.array([total, mean, *powers])
