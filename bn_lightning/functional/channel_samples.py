"""Percentiles of single channels, from the elements of each that a summary keeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from bn_lightning.functional.activations import ActivationSummary

LEAST_KEPT = 30
"""Fewer elements than these say nothing about the percentiles of a channel, unless they are all it has."""


@dataclass(frozen=True)
class ChannelPercentiles:
    """Percentiles of every channel of one activation.

    Attributes:
        kept: How many elements of the channel they come from, int64 `[C]`.
        values: Percentiles, float64 `[C, Q]`; NaN where fewer than `LEAST_KEPT` elements were kept of more.
        errors: Their standard errors that come from reading a sample only, float64 `[C, Q]`; NaN where the values are.
    """

    kept: Int64[Tensor, " c"]
    values: Float64[Tensor, "c q"]
    errors: Float64[Tensor, "c q"]


def channel_percentiles(summary: ActivationSummary, q: Sequence[float | int]) -> ChannelPercentiles:
    """Percentiles of every channel, with NumPy's default definition.

    Linear between order statistics (Hyndman and Fan 1996, type 7) where every kept element stands for equally many,
    else the weighted inverse distribution function, as for `quantiles.percentiles`. The standard error
    is half the distance between the percentiles one standard error of the rank below and above (Woodruff 1952), that
    of the rank being √(p(1 − p)/k · (1 − k/n)) for k elements kept of n (Cochran 1977, section 3.2). What thinning
    took away counts as not read, so that the error rather is too large.

    Args:
        summary: With the channel of each element it keeps.
        q: Percentages between 0 and 100.

    Returns:
        The percentiles; with unknown channels none was kept.

    Example:
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 90.0]])
        >>> found = channel_percentiles(summarise_rows(x, torch.arange(2), elements=6, keep_channels=True), (50, 100))
        >>> found.values.tolist(), found.errors.tolist(), found.kept.tolist()
        ([[2.0, 3.0], [20.0, 90.0]], [[0.0, 0.0], [0.0, 0.0]], [3, 3])
    """
    channels = len(summary.channel_nonfinite)
    channel = torch.zeros(0, dtype=torch.long) if summary.channel is None else summary.channel
    kept = np.bincount(channel.numpy(), minlength=channels)
    count = summary.channel_count.numpy()
    enough = (kept >= LEAST_KEPT) | ((kept == count) & (kept > 0))
    fractions = np.broadcast_to(np.asarray(q, dtype=np.float64) / 100, (channels, len(q)))
    unknown = np.full((channels, len(q)), math.nan)
    if not enough.any():
        return ChannelPercentiles(*map(torch.from_numpy, (kept, unknown, unknown)))
    ordered = _Ordered(summary, kept)
    with np.errstate(divide="ignore", invalid="ignore"):  # of channels that are masked out below
        spread = np.sqrt(fractions * (1 - fractions) / kept[:, None] * np.clip(1 - kept / count, 0, None)[:, None])
    spread = np.where(enough[:, None], spread, 0)
    low, high = (ordered.at(np.clip(fractions + sign * spread, 0, 1)) for sign in (-1, 1))
    values, errors = ordered.at(fractions), (high - low) / 2
    found = (np.where(enough[:, None], part, math.nan) for part in (values, errors))
    return ChannelPercentiles(torch.from_numpy(kept), *map(torch.from_numpy, found))


class _Ordered:
    """The kept elements sorted by channel, and by value within each."""

    def __init__(self, summary: ActivationSummary, kept: np.ndarray) -> None:
        channel = torch.zeros(0, dtype=torch.long) if summary.channel is None else summary.channel
        values = summary.values.double().numpy()
        order = np.lexsort((values, channel.numpy()))
        self._values = values[order]
        self._start = np.concatenate([[0], kept.cumsum()[:-1]])[:, None]
        self._last = np.maximum(kept - 1, 0)[:, None]
        self._cumulated = None if summary.is_uniform else np.cumsum(summary.weights.numpy()[order])

    def at(self, fractions: np.ndarray) -> np.ndarray:
        """The values below which these fractions `[C, Q]` of each channel's weight lie."""
        # A channel of which nothing was kept may stand behind the last element; what it gets is masked out.
        end = len(self._values) - 1
        if self._cumulated is not None:
            total = np.concatenate([[0], self._cumulated])
            first, beyond = total[self._start], total[self._start + self._last + (self._last >= 0)]
            place = np.searchsorted(self._cumulated, first + fractions * (beyond - first))
            place = np.clip(place, self._start, self._start + self._last)
            return np.asarray(self._values[np.minimum(place, end)])
        position = fractions * self._last
        below = np.floor(position).astype(np.int64)
        low = self._values[np.minimum(self._start + below, end)]
        high = self._values[np.minimum(self._start + np.minimum(below + 1, self._last), end)]
        return np.asarray(low + (high - low) * (position - below))
