"""Euclidean norms of tensors of any size and range, to more digits than the dtype's own sums keep.

All axes are reduced; a tensor counts as one long vector.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

ROW = 4096
"""Elements that are summed up in float32. Millions would lose the fourth digit."""

# Between these no square of an element that matters under- or overflows in float32.
_SAFE = (1e-12, 1e18)

# Of norms below it, squares of elements that matter may have lost digits or be 0 in float64.
_SQUARES_UNDERFLOW = 1e-140


def euclidean_norm(parts: Iterable[Float[Tensor, "..."]]) -> float:
    """‖·‖₂ of several tensors as one long vector.

    Args:
        parts: Real tensors of any shapes, dtypes and devices.

    Returns:
        The norm, as exact as those of `euclidean_norms`; 0 without tensors.

    Example:
        >>> euclidean_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        5.0
    """
    return math.hypot(*euclidean_norms(parts))


def euclidean_norms(parts: Iterable[Float[Tensor, "..."]]) -> list[float]:
    """‖·‖₂ of each tensor.

    Args:
        parts: Real tensors of any shapes, dtypes and devices.

    Returns:
        The norms, to five digits or more for elements of float32 or float64 however large or small; NaN or infinite
        where an element is.

    Example:
        >>> euclidean_norms([torch.tensor([3.0, 4.0]), torch.tensor([])])
        [5.0, 0.0]
    """
    flat = [part.detach().reshape(-1) for part in parts]
    short = [part for part in flat if part.dtype == torch.float64 or len(part) <= ROW]
    known = iter(_of_each(short))
    norms = []
    for part in flat:
        if part.dtype == torch.float64 or len(part) <= ROW:
            norms.append(next(known))
            continue
        whole = len(part) // ROW * ROW
        rows = torch.linalg.vector_norm(part[:whole].view(-1, ROW), dim=1, dtype=torch.float32).tolist()
        norm = math.hypot(*rows, *_of_each([part[whole:]] if whole < len(part) else []))
        # Where squares have left float32's range they have spoilt a row.
        norms.append(norm if _SAFE[0] < norm < _SAFE[1] else _of_each([part])[0])
    return norms


def _of_each(parts: list[Tensor]) -> list[float]:
    if len({part.device for part in parts}) == 1:
        norms: list[float] = torch.stack(torch._foreach_norm(parts, 2, torch.float64)).tolist()
    else:
        norms = [float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts]
    return [_in_range(norm, part) for norm, part in zip(norms, parts, strict=True)]


def _in_range(norm: float, part: Tensor) -> float:
    if part.dtype == torch.float64 and len(part) and (norm < _SQUARES_UNDERFLOW or math.isinf(norm)):
        largest = float(part.abs().max())
        if 0 < largest < math.inf:
            return largest * float(torch.linalg.vector_norm(part / largest))
    return norm
