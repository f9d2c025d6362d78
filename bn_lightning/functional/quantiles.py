"""Percentiles and histograms of samples, with NumPy's definitions and counts that never saturate.

Everything takes a flat vector `[n]` of samples: flatten, or pick a channel, before. A half-precision
vector is widened to float32 first. Counts are int64, since float32 stops counting at 2²⁴.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def sorted_samples(samples: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Sort ascending, NaN last; half precision comes back as float32.

    Args:
        samples: The values, on any device.

    Returns:
        A sorted copy on the same device, detached.
    """
    values = samples.detach()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.device.type == "cpu":
        # On the CPU NumPy's vectorised sort is many times faster than torch's.
        return torch.from_numpy(np.sort(values.numpy()))
    return values.sort().values


def percentiles(
    samples: Float[Tensor, " n"],
    q: Sequence[float | int],
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " q"]:
    """Percentiles of a sample, weighted or not.

    Without weights: linear interpolation between the two nearest order statistics, Hyndman and Fan
    (1996) type 7, which is `numpy.percentile`'s default. With weights: the smallest value whose
    cumulated weight reaches q % of the total, `numpy.percentile(..., method="inverted_cdf",
    weights=...)`; nothing is interpolated, as an interpolation would depend on how weight is spread
    between two values. A NaN among the samples makes every percentile NaN.

    Args:
        samples: The values, `[n]`, at least one.
        q: Percentages between 0 and 100.
        weights: How much of the population each value stands for; not negative, not all 0.

    Returns:
        float64 `[q]`, in the order of `q`, on the device of `samples`, in the unit of `samples`.

    Raises:
        ValueError: If there is no sample, a percentage lies outside 0 … 100, or the weights are
            negative or all 0.

    Example:
        >>> percentiles(torch.tensor([4.0, 1.0, 3.0, 2.0]), (0, 50, 100))
        tensor([1.0000, 2.5000, 4.0000], dtype=torch.float64)
        >>> percentiles(torch.tensor([1.0, 2.0]), (50,), weights=torch.tensor([1.0, 9.0]))
        tensor([2.], dtype=torch.float64)
    """
    if samples.numel() == 0:
        raise ValueError("Percentiles of no samples are undefined; record at least one value first.")
    shares = np.asarray(q, dtype=np.float64) / 100
    # NaN compares false, and no percentages at all are none outside.
    if not (shares.min(initial=0) >= 0 and shares.max(initial=0) <= 1):
        raise ValueError(f"Percentiles lie between 0 and 100, got {tuple(q)}.")
    if weights is None and samples.device.type == "cpu":
        return _interpolated(sorted_samples(samples).numpy(), shares)
    fractions = torch.from_numpy(shares).to(samples.device)
    if weights is not None:
        return _weighted(samples, fractions, weights)
    ordered = sorted_samples(samples)
    if bool(ordered[-1].isnan()):
        return torch.full_like(fractions, torch.nan)
    position = fractions * (len(ordered) - 1)
    below = position.floor().long()
    low, high = ordered[below].double(), ordered[(below + 1).clamp(max=len(ordered) - 1)].double()
    share = position - below
    # Where nothing is interpolated the value stands as it is, so that infinities stay infinities.
    return torch.where((low == high) | (share == 0), low, low + (high - low) * share)


def _interpolated(ordered: "np.ndarray", fractions: "np.ndarray") -> Float[Tensor, " q"]:
    """The same on the CPU, where NumPy's small operations cost a tenth of torch's."""
    if np.isnan(ordered[-1]):
        return torch.full((len(fractions),), torch.nan, dtype=torch.float64)
    position = fractions * (len(ordered) - 1)
    below = position.astype(np.int64)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, len(ordered) - 1)].astype(np.float64)
    share = position - below
    with np.errstate(invalid="ignore"):
        between = low + (high - low) * share
    return torch.from_numpy(np.where((low == high) | (share == 0), low, between))


def _weighted(
    samples: Float[Tensor, " n"], fractions: Float[Tensor, " q"], weights: Float[Tensor, " n"]
) -> Float[Tensor, " q"]:
    weights = weights.detach().double()
    total = weights.sum()
    if bool((weights < 0).any()) or not bool(total > 0):
        raise ValueError("Weights say how much each sample stands for: none may be negative, one must be positive.")
    if bool(samples.isnan().any()):
        return torch.full_like(fractions, torch.nan)
    ordered, order = samples.detach().double().sort(stable=True)
    cumulated = weights[order].cumsum(0)
    # A value of weight 0 is no part of the population, not even at 0 %.
    targets = (fractions * cumulated[-1]).clamp(min=float(weights[weights > 0].min()) * 0.5)
    return ordered[torch.searchsorted(cumulated, targets).clamp(max=len(ordered) - 1)]


def histogram(samples: Float[Tensor, " n"], edges: Float[Tensor, " edges"]) -> Int64[Tensor, " bins"]:
    """Count samples per bin, below the first edge and above the last.

    Bins are `[edge, next edge)`, the last one closed on both sides, as in `numpy.histogram`, which
    drops what lies outside; here it is counted. NaN is counted nowhere. Histograms over the same
    edges merge by addition.

    Args:
        samples: The values, `[n]`; may be empty.
        edges: At least two, increasing.

    Returns:
        int64 `[edges + 1]`: below, one count a bin, above.

    Raises:
        ValueError: If there are fewer than two edges or they do not increase.

    Example:
        >>> histogram(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 2.0]))
        tensor([1, 2, 2, 1])
    """
    bounds = _checked_edges(edges)
    ordered = sorted_samples(samples).double()
    numbers = len(ordered) - int(ordered.isnan().sum())
    reached = torch.searchsorted(ordered[:numbers].contiguous(), bounds.to(ordered.device))
    last = torch.searchsorted(ordered[:numbers].contiguous(), bounds[-1:].to(ordered.device), right=True)
    cuts = torch.cat([reached.new_zeros(1), reached[:-1], last, reached.new_full((1,), numbers)])
    return cuts.diff()


def histogram_percentiles(
    counts: Int64[Tensor, " bins"], edges: Float[Tensor, " edges"], q: Sequence[float | int]
) -> Float[Tensor, " q"]:
    """Percentiles read off a histogram, values taken as spread evenly within each bin.

    The error is at most the width of the bin the percentile falls into.

    Args:
        counts: What `histogram` returned, or a sum of such counts.
        edges: The edges it was made with.
        q: Percentages between 0 and 100.

    Returns:
        float64 `[q]`; minus or plus infinity for a percentile that falls below the first or above
        the last edge, where the histogram knows no value.

    Raises:
        ValueError: If counts and edges do not belong together, nothing was counted, or a percentage
            lies outside 0 … 100.

    Example:
        >>> histogram_percentiles(torch.tensor([0, 2, 2, 0]), torch.tensor([0.0, 1.0, 2.0]), (25, 50))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    bounds = _checked_edges(edges).cpu()
    numbers = counts.cpu()
    if len(numbers) != len(bounds) + 1:
        raise ValueError(f"{len(bounds)} edges make {len(bounds) + 1} counts (below, bins, above), got {len(numbers)}.")
    if int(numbers.sum()) == 0:
        raise ValueError("The histogram is empty, so it has no percentiles.")
    if any(not 0 <= percent <= 100 for percent in q):
        raise ValueError(f"Percentiles lie between 0 and 100, got {tuple(q)}.")
    reached = numbers.cumsum(0)[:-1].double().numpy()
    targets = np.asarray(q, dtype=np.float64) / 100 * float(numbers.sum())
    values = np.interp(targets, reached, bounds.numpy())
    values[targets < reached[0]] = -np.inf
    values[targets > reached[-1]] = np.inf
    return torch.from_numpy(values).to(counts.device)


def _checked_edges(edges: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    bounds = edges.detach().double()
    if len(bounds) < 2 or not bool((bounds.diff() > 0).all()):
        raise ValueError(f"A histogram needs two or more increasing edges, got {bounds.tolist()}.")
    return bounds
