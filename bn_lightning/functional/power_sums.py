"""Moments and extremes per channel of all elements of an activation, in one pass over memory.

Reduced are all axes but the channel axis: the batch for ``[N, C]``, batch and positions for ``[N, T, C]``
with the channel last and for ``[N, C, H, W]``. Elements are shifted by a pivot near the mean and summed in
float32 by chunks that stay in the cache; the chunks' sums are added in float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bn_lightning.functional.moments import Moments
from bn_lightning.functional.power_sums_cpu import finite_sums

# A device with its own memory is kept busy by large pieces; this many bound the temporaries to 128 MB.
_CHUNK = {"cpu": 1 << 17}
_CHUNK_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class PowerSums:
    """Sums of the powers of (x - pivot) per channel, and the extremes, over the finite elements.

    Attributes:
        count: How many finite elements, int64 `[C]`.
        pivot: What the elements were shifted by, float64 `[C]`.
        sums: Σ(x − pivot)ᵏ for k = 1 … 4, float64 `[4, C]`.
        minimum: The least element, float64 `[C]`; infinity where there is none.
        maximum: The greatest, float64 `[C]`; minus infinity where there is none.
        nonfinite: NaN and infinities among all elements, int64 scalar.
    """

    count: Int64[Tensor, " c"]
    pivot: Float[Tensor, " c"]
    sums: Float[Tensor, "4 c"]
    minimum: Float[Tensor, " c"]
    maximum: Float[Tensor, " c"]
    nonfinite: Int64[Tensor, ""]

    def moments(self) -> Moments:
        """Central moments, from the shifted sums by the binomial theorem; on the CPU.

        Exact but for rounding: the pivot is within a standard deviation or so of the mean, so hardly
        a digit cancels, whatever the mean is.
        """
        count = self.count.cpu()
        d, m2, m3, m4 = about_the_mean(count.clamp(min=1).double(), self.sums.cpu().double())
        mean = torch.where(count > 0, self.pivot.cpu().double() + d, 0.0)
        return Moments(count, mean, m2.clamp(min=0), m3, m4.clamp(min=0))


def about_the_mean(n: Any, sums: Any) -> tuple[Any, Any, Any, Any]:
    """Sums of powers about a pivot, turned into those about the mean.

    Args:
        n: How many elements were added up, at least 1; of a shape that goes with each of the sums.
        sums: Σ(x − pivot)ᵏ for k = 1 … 4 along the first axis; a tensor or an array.

    Returns:
        How far the mean lies above the pivot, and Σ(x − mean)ᵏ for k = 2, 3, 4. Rounding may leave even powers
        slightly below 0.

    Example:
        >>> about_the_mean(2, [4.0, 10.0, 28.0, 82.0])  # of 1 and 3
        (2.0, 2.0, 0.0, 2.0)
    """
    s1, s2, s3, s4 = sums
    d = s1 / n
    return d, s2 - n * d**2, s3 - 3 * d * s2 + 2 * n * d**3, s4 - 4 * d * s3 + 6 * d**2 * s2 - 3 * n * d**4


def power_sums(x: Float[Tensor, "..."], channel_dim: int) -> PowerSums:
    """Sum the powers of all elements of an activation per channel, and find its extremes.

    On the CPU the sums themselves tell whether anything was not finite; elsewhere, where looking would
    wait for the device, non-finite elements are always masked out.

    Args:
        x: At least one axis, of any floating type; not changed.
        channel_dim: The axis that is kept.

    Returns:
        The sums, on the device of `x`.

    Example:
        >>> sums = power_sums(torch.tensor([[1.0, 10.0], [3.0, float("nan")]]), 1)
        >>> sums.moments().mean.tolist(), sums.maximum.tolist(), sums.nonfinite.item()
        ([2.0, 10.0], [3.0, 10.0], 1)
    """
    x = x.detach()
    blocks = _blocks(x, channel_dim)
    if x.device.type == "cpu" and x.numel():
        pivot, total, low, high = finite_sums(blocks)
        if math.isfinite(float(total.sum())):
            count = torch.full((blocks.shape[1],), blocks.shape[0] * blocks.shape[2])
            nothing = torch.zeros((), dtype=torch.int64)
            return PowerSums(count, pivot.double(), total, low.double(), high.double(), nothing)
    return _masked(blocks)


def pool_power_sums(parts: Sequence[PowerSums]) -> PowerSums:
    """The sums of several activations of one layer together, shifted by their common mean.

    Source: Pébay (2008), "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
    statistical moments", equation 1.4: with δ the distance of a part's mean from the common one, its second, third
    and fourth sum grow by nδ², 3δM₂ + nδ³ and 4δM₃ + 6δ²M₂ + nδ⁴.

    Args:
        parts: At least one, of equally many channels.

    Returns:
        The sums, on the CPU; the part itself if it is the only one.

    Example:
        >>> parts = [power_sums(torch.tensor(values)[:, None], 1) for values in ([1.0, 3.0], [8.0])]
        >>> pooled = pool_power_sums(parts)
        >>> pooled.moments().mean.item(), pooled.moments().m2.item(), pooled.maximum.item()
        (4.0, 26.0, 8.0)
    """
    if len(parts) == 1:
        return parts[0]
    fields = [[getattr(part, name) for part in parts] for name in ("count", "pivot", "sums", "minimum", "maximum")]
    # One transfer for each field: the parts may lie on another device.
    count, pivot, sums, minimum, maximum = (torch.stack(found).cpu() for found in fields)
    n = count.clamp(min=1)
    d, m2, m3, m4 = about_the_mean(n.double(), sums.double().movedim(1, 0))
    total = count.sum(0)
    means = torch.where(count > 0, pivot.double() + d, 0.0)
    mean = (count * means).sum(0) / total.clamp(min=1)
    d = means - mean
    powers = [
        torch.zeros_like(d),
        m2 + count * d**2,
        m3 + 3 * d * m2 + count * d**3,
        m4 + 4 * d * m3 + 6 * d**2 * m2 + count * d**4,
    ]
    sums = torch.stack([power.sum(0) for power in powers])
    nonfinite = torch.stack([part.nonfinite for part in parts]).sum().cpu()
    return PowerSums(total, mean, sums, minimum.amin(0), maximum.amax(0), nonfinite)


def _blocks(x: Tensor, channel_dim: int) -> Tensor:
    """The activation as [outer, C, inner], a view wherever its layout in memory allows one."""
    axis = channel_dim % x.dim()
    last = x.movedim(axis, -1)
    if last.is_contiguous():
        return last.view(-1, x.shape[axis], 1)
    return x.reshape(-1, x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _chunks(blocks: Tensor) -> Iterator[Tensor]:
    outer, channels, inner = blocks.shape
    size = _CHUNK.get(blocks.device.type, _CHUNK_ELSEWHERE)
    for chunk in blocks.split(max(1, size // max(1, channels * inner))) if outer else ():
        yield chunk.float() if chunk.itemsize < 4 else chunk


def _masked(blocks: Tensor) -> PowerSums:
    channels, device = blocks.shape[1], blocks.device
    # Apple's accelerator has no float64; shifted float32 sums lose little there.
    precision = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros(4, channels, dtype=precision, device=device)
    low = torch.full((channels,), math.inf, dtype=precision, device=device)
    high, pivot = -low, torch.zeros_like(low)
    count = torch.zeros(channels, dtype=torch.int64, device=device)
    for number, chunk in enumerate(_chunks(blocks)):
        finite = chunk.isfinite()
        here = finite.sum((0, 2))
        kept = torch.where(finite, chunk, 0).to(precision)
        if number == 0:
            pivot = kept.sum((0, 2)) / here.clamp(min=1)
        centred = torch.where(finite, kept - pivot[:, None], 0)
        for power in range(4):
            total[power] += (centred ** (power + 1)).sum((0, 2))
        count += here
        low = torch.minimum(low, torch.where(finite, chunk, math.inf).amin((0, 2)).to(precision))
        high = torch.maximum(high, torch.where(finite, chunk, -math.inf).amax((0, 2)).to(precision))
    return PowerSums(count, pivot, total, low, high, blocks.numel() - count.sum())
