"""Histograms of an activation, of all of it or of each channel, estimated from the elements that a summary keeps."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from bn_lightning.functional.activations import ActivationSummary


def histogram_edges(summary: ActivationSummary, bins: int) -> Float64[Tensor, " edges"]:
    """Edges of equally wide bins from the least to the greatest finite element.

    Args:
        summary: Of the activation; where only a sample was read, its least and greatest element count.
        bins: How many bins.

    Returns:
        float64 `[bins + 1]`; half a unit to both sides where all elements are equal, as with `numpy.histogram`.

    Raises:
        ValueError: If there is no bin, or nothing finite was recorded.

    Example:
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> histogram_edges(summarise_rows(torch.tensor([[1.0], [5.0]]), torch.arange(1), elements=2), 2).tolist()
        [1.0, 3.0, 5.0]
    """
    if bins < 1:
        raise ValueError(f"A histogram has one bin or more, got bins={bins}.")
    if not summary.sampled:
        raise ValueError("A histogram needs finite elements, and none was recorded; run the model first.")
    if summary.extremes is None:
        low, high = (float(bound) for bound in summary.values.aminmax())
    else:
        low, high = float(summary.extremes[0].min()), float(summary.extremes[1].max())
    if low == high:
        low, high = low - 0.5, high + 0.5
        if low == high:  # so large that half a unit is lost in rounding
            low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    share = torch.arange(bins + 1, dtype=torch.float64) / bins
    # Weighed rather than added to, since the width of the largest floats' range is infinite.
    return low * (1 - share) + high * share


def layer_histogram(summary: ActivationSummary, edges: Float64[Tensor, " edges"]) -> Float64[Tensor, " bins"]:
    """Estimated number of elements a bin; their sum is the exact count of finite elements.

    The standard error of a bin that holds the share p of all is n·√(p(1 − p)/k · (1 − k/n)) for k of n elements kept.

    Args:
        summary: Of the activation.
        edges: As from `histogram_edges`; what lies outside is counted in the outermost bins.

    Returns:
        float64 `[bins]`.

    Example:
        >>> from bn_lightning.functional.summarise import summarise
        >>> read = torch.tensor([1.0, 1.5, 4.0, 5.0])
        >>> summary = summarise(read, torch.zeros(4, dtype=torch.long), channels=1, elements=400)
        >>> layer_histogram(summary, histogram_edges(summary, 2)).tolist()
        [200.0, 200.0]
    """
    counts = torch.bincount(_bin_of(summary, edges), summary.weights, minlength=len(edges) - 1)
    return counts * (summary.count / counts.sum())


def channel_histograms(summary: ActivationSummary, edges: Float64[Tensor, " edges"]) -> Float64[Tensor, "c bins"]:
    """Estimated number of elements a bin for every channel; their sum over bins is the exact count of the channel.

    Args:
        summary: Of the activation, with the channel of each element it keeps.
        edges: As from `histogram_edges`.

    Returns:
        float64 `[C, bins]`; NaN for a channel that has finite elements and of which none was kept.

    Raises:
        ValueError: If the summary does not know the channels of its elements.

    Example:
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> x = torch.tensor([[1.0, 5.0], [2.0, 4.0]])
        >>> summary = summarise_rows(x, torch.arange(2), elements=4, keep_channels=True)
        >>> channel_histograms(summary, histogram_edges(summary, 2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    if summary.channel is None:
        raise ValueError(
            "This summary does not know the channels of the elements it keeps; make it with keep_channels=True."
        )
    bins, channels = len(edges) - 1, len(summary.channel_nonfinite)
    cell = summary.channel * bins + _bin_of(summary, edges)
    counts = torch.bincount(cell, summary.weights, minlength=channels * bins).reshape(channels, bins)
    finite = summary.channel_count[:, None].double()
    total = counts.sum(1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1e-300) * finite, torch.where(finite > 0, math.nan, 0.0))


def _bin_of(summary: ActivationSummary, edges: Tensor) -> Tensor:
    # Closed below and open above, but for the last bin, as in numpy.histogram.
    bins = torch.searchsorted(edges.double(), summary.values.double(), right=True) - 1
    return bins.clamp(0, len(edges) - 2)
