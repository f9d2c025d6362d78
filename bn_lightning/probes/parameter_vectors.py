"""The parameters of a network as few long vectors, because an operation on each of many small tensors costs more."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bn_lightning.functional.norms import ROW

_ALIGNMENT = 64


class ParameterVectors:
    """Memory for one value of each parameter, as a vector for each dtype and device, and as views by path.

    Behind each parameter are a few unused elements, so that the next begins where fast kernels like it, and at
    the end as many as fill up the rows that `euclidean_norm` takes. They hold 0, or what was done to all of a vector.

    Args:
        like: Parameters by path; shapes, strides, dtypes and devices are taken over, values are not.

    Attributes:
        vectors: The vectors; what is written to them is seen in the views, and the other way round.
        views: The values by path.

    Example:
        >>> values = ParameterVectors({"a": torch.zeros(2), "b": torch.zeros(1, 1)})
        >>> values.fill([torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])])
        >>> len(values.vectors), values.vectors[0].sum().item(), values.views["b"].tolist()
        (1, 6.0, [[3.0]])
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name, part in like.items():
            groups.setdefault((part.dtype, part.device), []).append(name)
        self._places: list[tuple[str, int, int, torch.Size, tuple[int, ...]]] = []
        self.vectors: list[Tensor] = []
        for number, ((dtype, device), names) in enumerate(groups.items()):
            unit, size = max(_ALIGNMENT // dtype.itemsize, 1), 0
            for name in names:
                part = like[name]
                # A weight in channels-last memory stays so; the values of an expanded one are laid out in full.
                strides = part.stride() if part.is_contiguous() else torch.empty_like(part, device="meta").stride()
                self._places.append((name, number, size, part.shape, strides))
                size += -(-part.numel() // unit) * unit
            self.vectors.append(torch.zeros(-(-size // ROW) * ROW, dtype=dtype, device=device))
        self._names = tuple(like)
        self.views = self._views()

    def _views(self) -> dict[str, Tensor]:
        views = {
            name: self.vectors[number].as_strided(shape, strides, start)
            for name, number, start, shape, strides in self._places
        }
        return {name: views[name] for name in self._names}

    def like(self) -> "ParameterVectors":
        """Memory for other values of the same parameters, all 0."""
        other = copy.copy(self)
        other.vectors = [torch.zeros_like(vector) for vector in self.vectors]
        other.views = other._views()
        return other

    def copies(self) -> list[Tensor]:
        """Copies of the vectors, without views."""
        return [vector.clone() for vector in self.vectors]

    def fill(self, values: Iterable[Tensor]) -> None:
        """Copy values in.

        Args:
            values: One for each parameter, in the order of `views`.
        """
        with torch.no_grad():
            torch._foreach_copy_(list(self.views.values()), list(values))
