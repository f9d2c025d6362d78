"""Which elements of an activation to read: spread over all positions and channels, new ones each time.

An activation has one channel axis; every other axis counts as a position: `[N, C]` has N of them,
`[N, C, L]` N·L, `[N, C, H, W]` N·H·W, and `[N, T, C]` with the channel last N·T. Elements are
numbered position by position, `number = position · channels + channel`.

The samples are the points j·s mod M of a lattice over these M numbers, whose step s is coprime to M
and close to the golden section of M. So any run of j covers positions evenly, C consecutive j meet
every channel once, no element comes twice before all came once, and no random number is drawn.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# One tensor for the usual answer: making it anew would cost as much as the sum itself.
_NONE = torch.zeros((), dtype=torch.int64)
_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


@lru_cache(maxsize=4096)
def lattice_step(elements: int) -> int:
    """The step of the lattice over `elements` numbers, coprime to them.

    A run of the lattice is even when the continued fraction of step / elements has small partial
    quotients (Niederreiter 1992, section 5.1), so among the coprime numbers around the golden
    section, the number with the smallest ones, the first that keeps them below 4 is taken.

    Args:
        elements: How many numbers there are, at least 1.

    Returns:
        A step s with `gcd(s, elements) == 1`.

    Raises:
        ValueError: If there are no elements.

    Example:
        >>> step = lattice_step(12)
        >>> step, sorted(j * step % 12 for j in range(12)) == list(range(12))
        (7, True)
    """
    if elements < 1:
        raise ValueError(f"A lattice needs at least one element, got {elements}.")
    near = max(1, round(elements * _GOLDEN_SECTION))
    best, smallest = 1, elements + 1
    for distance in range(256):
        for step in (near - distance, near + distance):
            if not 0 < step <= elements or math.gcd(step, elements) != 1:
                continue
            largest = _largest_partial_quotient(step, elements)
            if largest < smallest:
                best, smallest = step, largest
        if smallest < 4:
            break
    return best


def _largest_partial_quotient(step: int, elements: int) -> int:
    largest, (high, low) = 0, (elements, step)
    while low:
        quotient, rest = divmod(high, low)
        # A fraction may end in [..., a, 1] as well as in [..., a + 1]: the longer form is the smaller.
        largest = max(largest, quotient - 1 if rest == 0 else quotient)
        high, low = low, rest
    return largest


def sample_size(elements: int, channels: int, max_elements: int | None) -> int:
    """How many elements to read so that all channels come equally often.

    Args:
        elements: Elements of the activation.
        channels: Length of its channel axis.
        max_elements: The most to read; None reads all.

    Returns:
        All of them if they are few enough, else the largest multiple of `channels` that fits, or
        `max_elements` where one value a channel is already too much.

    Raises:
        ValueError: If `max_elements` is smaller than 1.

    Example:
        >>> sample_size(6000, 100, 1024), sample_size(900, 100, 1024), sample_size(8192, 4096, 1024)
        (1000, 900, 1024)
    """
    if max_elements is not None and max_elements < 1:
        raise ValueError(f"At least one element must be read to say anything, got max_elements={max_elements}.")
    if max_elements is None or elements <= max_elements:
        return elements
    return max_elements if channels > max_elements else max_elements // channels * channels


def lattice_index(
    elements: int, size: int, start: int, *, device: torch.device | str | None = None
) -> Int64[Tensor, " size"]:
    """Numbers of the elements that the samples `start … start + size - 1` of the lattice read.

    Args:
        elements: Elements of the activation.
        size: How many to read.
        start: Which sample of the lattice comes first.
        device: Where the index shall live.

    Returns:
        int64 `[size]`; the channel of each is `number % channels`.

    Example:
        >>> lattice_index(10, 4, 0), lattice_index(10, 4, 4)
        (tensor([0, 7, 4, 1]), tensor([8, 5, 2, 9]))
    """
    step = lattice_step(elements)
    # j·s stays far below 2⁶³ for any tensor that fits into memory, since j and s are below M.
    index = torch.arange(size, device=device)
    return index.mul_(step).add_(start % elements * step % elements).remainder_(elements)


@lru_cache(maxsize=64)
def spread_rows(rows: int, most: int) -> Int64[Tensor, " kept"]:
    """Some of many rows: one at random of each of so many equal shares, the same ones every time.

    Every so-manieth row would be of a single image column wherever the stride is a multiple of the width, and a lattice
    of a few of its lines.

    Args:
        rows: How many there are.
        most: How many to keep at most.

    Returns:
        int64 `[min(rows, most)]`, ascending; not to be changed in place.

    Example:
        >>> spread_rows(3, 4), len(spread_rows(9, 4))
        (tensor([0, 1, 2]), 4)
    """
    if rows <= most:
        return torch.arange(rows)
    bounds = torch.arange(most + 1) * rows // most
    within = torch.rand(most, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return bounds[:-1] + (within * bounds.diff()).long()


def memory_offsets(number: Int64[Tensor, " size"], *, channels: int, inner: int) -> Int64[Tensor, " size"]:
    """Where elements of these numbers lie in a contiguous tensor.

    Args:
        number: Position-by-position numbers of the elements.
        channels: Length of the channel axis.
        inner: Product of the lengths of the axes behind it: 1 for `[N, C]`, H·W for `[N, C, H, W]`.

    Returns:
        int64 `[size]`: offsets into the flattened tensor.

    Example:
        >>> memory_offsets(torch.tensor([0, 1, 2, 3]), channels=2, inner=2)  # [N, 2, 2]
        tensor([0, 2, 1, 3])
    """
    if inner == 1:
        return number
    if number.device.type == "cpu":
        # NumPy divides integers by one number several times faster than torch does, and than it finds quotient and
        # remainder together.
        numbers = number.numpy()
        positions = numbers // channels
        outers = positions // inner
        # (outer · channels + channel) · inner + rest, the channel and the rest written out.
        return torch.from_numpy(
            positions + (numbers - positions * channels) * inner + outers * ((channels - 1) * inner)
        )
    position = number.div(channels, rounding_mode="floor")
    channel = number - position * channels
    outer = position.div(inner, rounding_mode="floor")
    return (outer * channels + channel) * inner + position - outer * inner


def count_nonfinite(values: Float[Tensor, "*shape"]) -> Int64[Tensor, ""]:
    """Count NaN and infinities exactly, without waiting for the device.

    On the CPU the sum is looked at first: it is finite for any tensor one would hope for, and costs
    one read. Elsewhere and under torch.compile a branch would stall, so every element is counted.

    Args:
        values: Any floating-point tensor.

    Returns:
        int64 scalar on the device of `values`; not to be changed in place.

    Example:
        >>> count_nonfinite(torch.tensor([1.0, float("inf"), float("nan")]))
        tensor(2)
    """
    if values.is_cpu and not torch.compiler.is_compiling():
        total = values.sum(dtype=torch.float32) if values.itemsize < 4 else values.sum()
        if math.isfinite(total.item()):
            return _NONE
    # x - x is 0 for finite values and NaN, which is not zero, for all others.
    return torch.count_nonzero(values - values)
