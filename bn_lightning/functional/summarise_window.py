"""Summarise all that was read of one layer in a window of calls, in few operations.

What was read comes in turns of the channels, `[rows, C]`: every row meets each channel once, in the same order.
Positions of `[N, C, L]` and `[N, C, H, W]` are rows like those of `[N, C]`. All runs in NumPy on the CPU, where an
operation on a few thousand elements takes a fraction of what it takes in torch.
"""

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped

from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.moments import Moments
from bn_lightning.functional.power_sums import PowerSums, about_the_mean
from bn_lightning.functional.power_sums_cpu import finite_sums

# Up to here moments are taken in float64, faster than by pieces; beyond, in float32 shifted by a pivot and added up in
# float64, with temporaries that do not grow.
_FEW = 1 << 17


def summarise_window(
    rows: Shaped[np.ndarray, "rows c"],
    order: Int64[np.ndarray, " c"],
    *,
    elements: int,
    max_samples: int | None = None,
    keep_channels: bool = False,
    sums: PowerSums | None = None,
) -> ActivationSummary:
    """Summarise finite elements; the same as `summarise_rows` and `thin`, several times faster.

    Args:
        rows: What was read, float32 or float64, all finite.
        order: The channel of each column.
        elements: How many elements the activations had in all; each channel has an equal share of them.
        max_samples: The most elements to keep, in the middle of equal shares of the sorted ones; None keeps all.
        keep_channels: Whether the summary shall know the channel of each element it keeps.
        sums: Of all elements, where they were read; the moments come from these.

    Returns:
        The summary, on the CPU, moments in float64.

    Example:
        >>> rows = np.array([[10.0, 1.0], [30.0, 3.0]], dtype=np.float32)
        >>> summary = summarise_window(rows, np.array([1, 0]), elements=400, max_samples=2)
        >>> summary.moments.mean.tolist(), summary.moments.variance().tolist(), summary.count
        ([2.0, 20.0], [1.0, 100.0], 400)
        >>> summary.values.tolist(), summary.weights.tolist()
        ([1.0, 10.0], [200.0, 200.0])
    """
    channels = len(order)
    place = np.empty_like(order)
    place[order] = np.arange(channels)
    if sums is None:
        moments, extremes = _moments(rows, place, elements // channels, with_extremes=rows.size == elements)
    else:
        moments, extremes = sums.moments(), torch.stack([sums.minimum, sums.maximum]).cpu().double()
    values, channel = _kept(rows, order if keep_channels else None, max_samples)
    weights = torch.full((len(values),), elements / len(values), dtype=torch.float64)
    nonfinite = torch.zeros(channels, dtype=torch.int64)
    return ActivationSummary(moments, values, weights, rows.size, elements, nonfinite, extremes, channel)


def _moments(
    rows: np.ndarray, place: np.ndarray, count: int, *, with_extremes: bool
) -> tuple[Moments, torch.Tensor | None]:
    found, extremes = None, None
    if rows.size > _FEW:
        found, extremes = _of_many(rows)
    if found is None or not np.isfinite(found).all():
        # Few, or powers that left float32's range.
        found = _of_few(rows)
    if with_extremes and extremes is None:
        extremes = np.stack([rows.min(0), rows.max(0)])
    found[1:] *= count / len(rows)
    powers = torch.from_numpy(found[:, place])
    ends_of_channel = torch.from_numpy(extremes[:, place]).double() if with_extremes and extremes is not None else None
    return Moments(torch.full((len(place),), count), *powers.unbind()), ends_of_channel


def _of_few(rows: np.ndarray) -> Float64[np.ndarray, "4 c"]:
    """The mean and the central sums of powers 2 … 4 of each column, in float64."""
    found = np.empty((4, rows.shape[1]))
    pivot = rows[0].astype(np.float64)
    centred = rows - pivot
    mean = np.add.reduce(centred, 0) / len(rows)
    centred -= mean
    square = centred * centred
    np.add(pivot, mean, out=found[0])
    np.add.reduce(square, 0, out=found[1])
    centred *= square
    np.add.reduce(centred, 0, out=found[2])
    square *= square
    np.add.reduce(square, 0, out=found[3])
    return found


def _of_many(rows: np.ndarray) -> tuple[Float64[np.ndarray, "4 c"], np.ndarray]:
    """The same from float32 sums shifted by a pivot, as precise as those are; and the extremes."""
    pivot, sums, low, high = finite_sums(torch.from_numpy(rows)[:, :, None])
    d, m2, m3, m4 = about_the_mean(len(rows), sums.numpy())
    found = np.stack([pivot.double().numpy() + d, np.maximum(m2, 0), m3, np.maximum(m4, 0)])
    return found, np.stack([low.numpy(), high.numpy()])


def _kept(
    rows: Float32[np.ndarray, "rows c"] | Float64[np.ndarray, "rows c"], order: np.ndarray | None, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    values = rows.reshape(-1)
    channel = None if order is None else np.tile(order, len(rows))
    if limit is not None and len(values) > limit:
        middles = np.ceil((np.arange(limit) + 0.5) * (len(values) / limit)).astype(np.int64) - 1
        if channel is None:
            # The values alone are sorted several times faster than their order is found.
            values = np.sort(values)[middles]
        else:
            first = np.argsort(values, kind="stable")[middles]
            values, channel = values[first], channel[first]
    return torch.from_numpy(values), None if channel is None else torch.from_numpy(channel)
