"""Activation summaries of many layers, merged over steps and over the ranks of a distributed run."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torchmetrics import Metric

from bn_lightning.functional.activations import ActivationSummary, empty_summary, merge_summaries
from bn_lightning.functional.moments import Moments
from bn_lightning.functional.thinning import thin

_HEAD = 3  # sampled, elements, kept


class ActivationStatistics(Metric):
    """Merges `ActivationSummary` objects over updates and ranks, all layers in one gather.

    The state is one float64 vector for all layers: counts, the four moments, the extremes and the non-finite count of
    every channel, and up to `max_samples` weighted samples a layer, whose channels are not carried: that would
    lengthen the vector by almost half. Ranks merge pairwise (Chan, Golub & LeVeque 1983), so
    uneven batches weigh by their size; sums of squares would cancel, and averaging the ranks' means
    would weigh a short batch like a long one. `.half()` and `.bfloat16()` leave the state float64.

    Args:
        channels: Channels of each layer, in the order in which `update` gets the summaries.
        max_samples: Samples a layer kept for percentiles, on each rank and in the result; more are thinned evenly.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If there is no layer, or a number is smaller than 1.

    Example:
        >>> from bn_lightning.functional.summarise import summarise
        >>> metric = ActivationStatistics([1])
        >>> for values in ([1.0, 2.0], [6.0]):
        ...     channel = torch.zeros(len(values), dtype=torch.long)
        ...     metric.update([summarise(torch.tensor(values), channel, channels=1, elements=len(values))])
        >>> metric.summaries()[0].mean
        3.0
    """

    full_state_update = False
    is_differentiable = False
    state: Tensor

    def __init__(self, channels: Sequence[int], *, max_samples: int = 4096, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not channels or min(channels) < 1 or max_samples < 1:
            raise ValueError(
                "Activation statistics need at least one layer, one channel a layer and one sample, "
                f"got channels={list(channels)} and max_samples={max_samples}."
            )
        self.channels = tuple(channels)
        self.max_samples = max_samples
        length = sum(self._length(number) for number in self.channels)
        # Of fixed length and never empty, so that a rank without data still takes part in the gather.
        self.add_state("state", default=torch.zeros(length, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, summaries: Sequence[ActivationSummary]) -> None:
        """Merge one summary a layer into the state.

        Args:
            summaries: In the order of `channels`.

        Raises:
            ValueError: If the summaries are not those of the layers.
        """
        found = [len(summary.moments.mean) for summary in summaries]
        if found != list(self.channels):
            raise ValueError(f"Expected one summary a layer with {list(self.channels)} channels, got {found}.")
        merged = [merge_summaries(old, new) for old, new in zip(self._unpack(self.state), summaries, strict=True)]
        self.state = torch.cat([self._pack(summary) for summary in merged]).to(self.state.device)

    def compute(self) -> Float64[Tensor, " length"]:
        """The state merged over all updates and ranks, to be read through `summaries`.

        Every rank must call this: it gathers.
        """
        ranks = [self._unpack(row) for row in self.state.reshape(-1, self.state.shape[-1])]
        merged = ranks[0]
        for rank in ranks[1:]:
            merged = [merge_summaries(old, new) for old, new in zip(merged, rank, strict=True)]
        return torch.cat([self._pack(summary) for summary in merged])

    def summaries(self) -> tuple[ActivationSummary, ...]:
        """One summary a layer over all updates and ranks, on the CPU.

        Every rank must call this: it gathers.

        Returns:
            In the order of `channels`.
        """
        return tuple(self._unpack(self.compute()))

    def _length(self, channels: int) -> int:
        return _HEAD + 8 * channels + 2 * self.max_samples

    def _pack(self, summary: ActivationSummary) -> Float64[Tensor, " section"]:
        summary = thin(summary, self.max_samples)
        moments, kept = summary.moments, len(summary.values)
        head = torch.tensor([summary.sampled, summary.elements, kept], dtype=torch.float64)
        count = torch.as_tensor(moments.count).double()
        unused = torch.zeros(self.max_samples - kept, dtype=torch.float64)
        powers = [moments.mean, moments.m2, moments.m3, moments.m4]
        unknown = torch.full((2, len(count)), math.nan, dtype=torch.float64)
        extremes = (unknown if summary.extremes is None else summary.extremes).flatten()
        channels = [count, *powers, extremes, summary.channel_nonfinite.double()]
        return torch.cat([head, *channels, summary.values.double(), unused, summary.weights, unused])

    def _unpack(self, row: Float64[Tensor, " length"]) -> list[ActivationSummary]:
        sections = row.cpu().split([self._length(number) for number in self.channels])
        return [self._unpack_one(section, number) for section, number in zip(sections, self.channels, strict=True)]

    def _unpack_one(self, section: Float64[Tensor, " section"], channels: int) -> ActivationSummary:
        sampled, elements, kept = (int(number) for number in section[:_HEAD])
        if not elements:
            return empty_summary(channels)
        count, *powers, low, high, nonfinite = section[_HEAD : _HEAD + 8 * channels].reshape(8, channels)
        extremes = None if bool(low.isnan().any()) else torch.stack([low, high])
        values, weights = section[_HEAD + 8 * channels :].reshape(2, self.max_samples)[:, :kept]
        moments = Moments(count.long(), *powers)
        return ActivationSummary(moments, values, weights, sampled, elements, nonfinite.long(), extremes)
