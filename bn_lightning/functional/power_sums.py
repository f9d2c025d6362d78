"""Moments and extremes per channel of all elements of an activation, in one pass over memory.

Reduced are all axes but the channel axis: the batch for ``[N, C]``, batch and positions for ``[N, T, C]``
with the channel last and for ``[N, C, H, W]``. Elements are shifted by a pivot near the mean and summed in
float32 by chunks that stay in the cache; the chunks' sums are added in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bn_lightning.functional.moments import Moments

# Half a megabyte of float32, the fastest of 2^13 … 2^20 elements where it was measured.
_CHUNK = {"cpu": 1 << 17}
# A device with its own memory is kept busy by large pieces; this many bound the temporaries to 128 MB.
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
        n = count.clamp(min=1).double()
        s1, s2, s3, s4 = self.sums.cpu().double()
        d = s1 / n
        return Moments(
            count,
            torch.where(count > 0, self.pivot.cpu().double() + d, 0.0),
            (s2 - n * d**2).clamp(min=0),
            s3 - 3 * d * s2 + 2 * n * d**3,
            (s4 - 4 * d * s3 + 6 * d**2 * s2 - 3 * n * d**4).clamp(min=0),
        )


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
    if x.device.type == "cpu":
        found = _all_finite(blocks)
        if math.isfinite(float(found.sums.sum())):
            return found
    return _masked(blocks)


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


def _all_finite(blocks: Tensor) -> PowerSums:
    outer, channels, inner = blocks.shape
    precision = torch.float64
    total = torch.zeros(4, channels, dtype=precision)
    low = torch.full((channels,), math.inf, dtype=blocks.dtype if blocks.itemsize >= 4 else torch.float32)
    high, pivot = -low, torch.zeros_like(low)
    centred = square = torch.empty(0)
    for number, chunk in enumerate(_chunks(blocks)):
        if number == 0:
            pivot = chunk.mean((0, 2))
        if centred.shape != chunk.shape:
            centred, square = torch.empty_like(chunk), torch.empty_like(chunk)
        torch.sub(chunk, pivot[:, None], out=centred)
        torch.mul(centred, centred, out=square)
        total[0] += centred.sum((0, 2))
        total[1] += square.sum((0, 2))
        total[2] += centred.mul_(square).sum((0, 2))
        total[3] += square.mul_(square).sum((0, 2))
        torch.minimum(low, chunk.amin((0, 2)), out=low)
        torch.maximum(high, chunk.amax((0, 2)), out=high)
    count = torch.full((channels,), outer * inner)
    return PowerSums(count, pivot.double(), total, low.double(), high.double(), torch.zeros((), dtype=torch.int64))


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
