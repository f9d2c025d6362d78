"""Tensors that a model receives while it is traced, and may write to in place, keep their values."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Received:
    """Remembers the values of tensors."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, int | None, Tensor]] = []

    def keep(self, tensor: Tensor) -> None:
        """Remember what `tensor` holds now."""
        version = None if tensor.is_inference() else tensor._version
        self._kept.append((tensor, version, tensor.detach().clone()))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """On exit, give every tensor that was kept inside and written to its values back."""
        try:
            yield
        finally:
            for tensor, version, values in self._kept:
                if version is None or tensor._version != version:
                    with torch.inference_mode(tensor.is_inference()):
                        tensor.copy_(values)
            self._kept.clear()
