"""Power sums of an activation on the CPU, by pieces that stay in the cache with temporaries that are kept.

Tensors are `[outer, C, inner]`: `[N, C, 1]` of ``[N, C]`` and of anything with the channel last in memory,
`[N, C, H·W]` of ``[N, C, H, W]``. Where `inner` is long, each run of it is a *line* of one channel, and sums over lines
are dot products; else rows of `C · inner` columns are added up. Everything is taken for finite: what is not makes the
sums NaN or infinite.
"""

import threading

import numpy as np
import torch
from torch import Tensor

# A quarter of a megabyte of float32: with two temporaries of that size, the fastest of 2^13 … 2^17 where measured.
_CHUNK = 1 << 16
# Shorter lines cost more in calls than in arithmetic.
_SHORTEST_LINE = 128
# Longer dot products lose digits, and BLAS libraries split them over threads of their own.
_LONGEST_LINE = 8192
_KEPT = threading.local()


def finite_sums(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum powers of (x - pivot) over the outer and inner axes, and find the extremes.

    Args:
        blocks: `[outer, C, inner]`, on the CPU, not empty, of any floating type.

    Returns:
        The pivot `[C]`, Σ(x − pivot)ᵏ for k = 1 … 4 as float64 `[4, C]`, the least and the greatest element `[C]`.

    Example:
        >>> pivot, sums, low, high = finite_sums(torch.tensor([1.0, 3.0, 5.0]).reshape(3, 1, 1))
        >>> pivot.tolist(), sums[:, 0].tolist(), low.tolist(), high.tolist()
        ([3.0], [0.0, 8.0, 0.0, 32.0], [1.0], [5.0])
    """
    outer, channels, inner = blocks.shape
    # Overflow is no accident here but what tells the caller to look closer.
    with np.errstate(all="ignore"):
        if inner < _SHORTEST_LINE:
            return _of_columns(blocks.reshape(outer, channels * inner), channels)
        pivot = _wide(blocks[0]).mean(1)
        pivots = pivot.repeat(outer)[:, None]
        lines = blocks.reshape(outer * channels, inner)
        parts = [_of_lines(piece, pivots) for piece in lines.split(_LONGEST_LINE, 1)]
        sums = np.sum([part[0] for part in parts], 0).reshape(4, outer, channels).sum(1)
        low = torch.stack([part[1] for part in parts]).view(-1, channels).amin(0)
        high = torch.stack([part[2] for part in parts]).view(-1, channels).amax(0)
    return pivot, torch.from_numpy(sums), low, high


def _of_lines(lines: Tensor, pivots: Tensor) -> tuple[np.ndarray, Tensor, Tensor]:
    """Σ(x − pivot)ᵏ of each line, float64 `[4, lines]`, and its extremes."""
    count, length = lines.shape
    step = max(1, _CHUNK // length)
    centred, square = _temporaries(min(step, count) * length, pivots.dtype, (-1, length))
    # Dot products: one row times one column for each line.
    across, squares_across = centred.numpy()[:, None], square.numpy()[:, None]
    down, squares_down = centred.numpy()[:, :, None], square.numpy()[:, :, None]
    ones = np.ones((length, 1), dtype=across.dtype)
    sums = np.empty((4, count, 1, 1), dtype=across.dtype)
    low, high = pivots.new_empty(count), pivots.new_empty(count)
    place = 0
    for piece, pivot, least, most in zip(
        lines.split(step), pivots.split(step), low.split(step), high.split(step), strict=True
    ):
        n = len(piece)
        chunk = _wide(piece)
        torch.sub(chunk, pivot, out=centred[:n])
        torch.amin(chunk, 1, out=least)
        torch.amax(chunk, 1, out=most)
        np.multiply(down[:n], down[:n], out=squares_down[:n])
        here = sums[:, place : place + n]
        np.matmul(across[:n], ones, out=here[0])
        np.matmul(across[:n], down[:n], out=here[1])
        np.matmul(across[:n], squares_down[:n], out=here[2])
        np.matmul(squares_across[:n], squares_down[:n], out=here[3])
        place += n
    return sums.reshape(4, count).astype(np.float64), low, high


def _of_columns(rows: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, columns = rows.shape
    # A few rows at the least, so that what is kept for each piece stays small beside the piece.
    step = min(count, max(16, _CHUNK // columns))
    pivot = _wide(rows[:16]).mean(0).view(channels, -1).mean(1)
    pivots = pivot.repeat_interleave(columns // channels)
    centred, square = _temporaries(step * columns, pivot.dtype, (step, columns))
    number = -(-count // step)
    sums, low, high = (pivot.new_empty(*shape, columns) for shape in ((number, 4), (number,), (number,)))
    for piece, here, least, most in zip(rows.split(step), sums, low, high, strict=True):
        n = len(piece)
        chunk = _wide(piece)
        x, xx = centred[:n], square[:n]
        torch.sub(chunk, pivots, out=x)
        torch.amin(chunk, 0, out=least)
        torch.amax(chunk, 0, out=most)
        torch.sum(x, 0, out=here[0])
        torch.sum(torch.mul(x, x, out=xx), 0, out=here[1])
        torch.sum(x.mul_(xx), 0, out=here[2])
        torch.sum(xx.mul_(xx), 0, out=here[3])
    total = sums.double().sum(0).view(4, channels, -1).sum(2)
    return pivot, total, low.amin(0).view(channels, -1).amin(1), high.amax(0).view(channels, -1).amax(1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.itemsize < 4 else x


def _temporaries(size: int, dtype: torch.dtype, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two arrays to overwrite: fresh ones would be handed out by the system page by page, which takes as long as a sum.

    They are kept as NumPy's, since a tensor made under `torch.inference_mode` could not be written to outside.
    """
    key = torch.finfo(dtype).bits
    kept: dict[int, np.ndarray] = _KEPT.__dict__.setdefault("arrays", {})
    found = kept.get(key)
    if found is None or found.shape[1] < size:
        found = np.empty((2, max(size, _CHUNK)), dtype=np.float32 if key == 32 else np.float64)
        if size <= 4 * _CHUNK:
            kept[key] = found
    first, second = (torch.from_numpy(found[row, :size]).view(shape) for row in (0, 1))
    return first, second
