"""Histograms of recorded tensors for TensorBoard: of all elements, and over channels of their means and deviations."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._activation_monitor.layout import is_gradient
from bn_lightning.functional.activations import ActivationSummary

if TYPE_CHECKING:
    import numpy as np

# TensorBoard draws 30 bins; one more on either side holds the tails.
_BINS = 30
_TAIL = 0.005
# Channels are far fewer than elements, and these histograms are two thirds of all.
_CHANNEL_BINS = 16
# A channel's mean from fewer elements than this is mostly noise, which would widen the histogram over channels.
_ELEMENTS_A_CHANNEL = 16


@dataclass(frozen=True)
class Histogram:
    """What TensorBoard keeps of a distribution.

    Attributes:
        minimum: Least element.
        maximum: Greatest element.
        count: How many elements there are.
        total: Their sum.
        squares: The sum of their squares.
        limits: Upper limit of each bucket, ascending.
        counts: Elements in each bucket; they add up to `count`.
    """

    minimum: float
    maximum: float
    count: int
    total: float
    squares: float
    limits: tuple[float, ...]
    counts: tuple[float, ...]

    def write(self, writer: Any, tag: str, step: int) -> None:
        """Write it to a TensorBoard writer.

        Args:
            writer: A SummaryWriter.
            tag: Where it is shown.
            step: The optimizer step.
        """
        writer.add_histogram_raw(
            tag, self.minimum, self.maximum, self.count, self.total, self.squares, self.limits, self.counts, step
        )


def write_histograms(
    writers: Sequence[Any], series: Iterable[tuple[tuple[str, str], ActivationSummary]], step: int
) -> None:
    """Write the histograms of a step: of all elements, and, but for gradients, over channels.

    Args:
        writers: SummaryWriters.
        series: Kind (with the monitor's prefix) and last part of the tag, and the summary of each series.
        step: The optimizer step.
    """
    for (kind, tag), summary in series:
        found = {f"{kind}/{tag}": element_histogram(summary)}
        if not is_gradient(kind):
            found |= {f"{kind}_channel_{name}/{tag}": each for name, each in channel_histograms(summary).items()}
        for at, histogram in found.items():
            if histogram is not None:
                for writer in writers:
                    histogram.write(writer, at, step)


def element_histogram(summary: ActivationSummary) -> Histogram | None:
    """The distribution of all elements, from those kept for percentiles, each with its weight.

    Count, sum and sum of squares are those of the moments; minimum and maximum are exact where all elements were
    looked at, else those of the sample. Thirty equal buckets span the middle 99 % of the elements and one more on
    either side takes the tail, so that one outlier does not squeeze all others into one bucket.

    Args:
        summary: Of one series and step.

    Returns:
        The histogram; None where no finite element was recorded, or their sum overflows.
    """
    if not len(summary.values) or not math.isfinite(summary.variance):
        return None
    import numpy as np

    values, weights = summary.values.double().cpu().numpy(), summary.weights.double().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    if summary.extremes is not None:
        low, high = min(low, float(summary.extremes[0].min())), max(high, float(summary.extremes[1].max()))
    first, last = summary.percentiles([100 * _TAIL, 100 * (1 - _TAIL)])
    edges = np.linspace(first, last, _BINS + 1)
    moments = summary.count, summary.mean, summary.variance
    return _histogram(values, weights, edges, low=low, high=high, moments=moments)


def channel_histograms(summary: ActivationSummary) -> dict[str, Histogram]:
    """The distributions over channels of each channel's mean and biased standard deviation.

    Args:
        summary: Of one series and step.

    Returns:
        "mean" and "std"; nothing where there is one channel only, or fewer than 16 elements a channel were read.
    """
    import numpy as np
    import torch

    moments = summary.moments
    met = (torch.as_tensor(moments.count) > 0) & moments.mean.isfinite()
    number = int(met.sum())
    if number < 2 or summary.sampled < _ELEMENTS_A_CHANNEL * number:
        return {}
    found = {}
    for name, each in (("mean", moments.mean), ("std", moments.variance().sqrt())):
        values = each[met].double().cpu().numpy()
        low, high = float(values.min()), float(values.max())
        edges = np.linspace(low, high, _CHANNEL_BINS + 1)
        whole = number, float(values.mean()), float(values.var())
        found[name] = _histogram(values, np.ones(number), edges, low=low, high=high, moments=whole)
    return found


def _histogram(
    values: "np.ndarray",
    weights: "np.ndarray",
    edges: "np.ndarray",
    *,
    low: float,
    high: float,
    moments: tuple[int, float, float],
) -> Histogram:
    import numpy as np

    count, mean, variance = moments
    # Equal limits, as of a constant, make buckets without width, of which TensorBoard's page draws none.
    limits = np.unique(np.append(edges[edges < high], high))
    if low == high:
        limits = np.array([np.nextafter(low, -np.inf), high])
    places = np.searchsorted(limits, values).clip(max=len(limits) - 1)
    counts = np.bincount(places, weights, minlength=len(limits))
    counts *= count / counts.sum()
    squares = count * (variance + mean**2)
    return Histogram(low, high, count, count * mean, squares, tuple(limits.tolist()), tuple(counts.tolist()))
