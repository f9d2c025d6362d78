"""How to read tensors of one shape, memory layout and type: worked out once, since a hook runs in microseconds.

On the CPU what is read becomes a NumPy array, as NumPy gathers a thousand elements in a third of torch's time.
"""

import math

import numpy as np
import torch
from torch import Tensor

from bn_lightning.functional.nonfinite import count_channel_nonfinite
from bn_lightning.functional.sampling import (
    count_nonfinite,
    lattice_index,
    lattice_step,
    memory_offsets,
    sample_size,
)

# Index vectors kept a layout (8 KB each for 1,024 elements): enough for every phase of a small layer.
_CACHED_INDICES = 32
# Beyond, BLAS libraries split a dot product over threads of their own, which torch's settings do not hold back.
_LONGEST_DOT = 8192


class ActivationLayout:
    """Reads samples of tensors that are alike, and says which channel each sample is of.

    Args:
        x: One of the tensors.
        channel_dim: Their channel axis.
        channels: Its length.
        max_elements: The most elements to read; None reads all.

    Attributes:
        elements: Elements of the tensors.
        size: How many of them are read.
        is_whole: Whether these are all.

    Example:
        >>> x = torch.arange(12.0).reshape(2, 3, 2)  # two positions of three channels, twice
        >>> layout = ActivationLayout(x, 1, channels=3, max_elements=6)
        >>> layout.read(x, 0).tolist(), layout.channels_of(0).tolist()
        ([0.0, 8.0, 4.0, 7.0, 3.0, 11.0], [0, 1, 2, 0, 1, 2])
    """

    def __init__(self, x: Tensor, channel_dim: int, *, channels: int, max_elements: int | None) -> None:
        axis = channel_dim % x.dim()
        last = x.movedim(axis, -1)
        # Without copying, memory can be read in its own order: channels behind each position, or before.
        channel_is_last = last.is_contiguous()
        self.elements = x.numel()
        self.size = sample_size(self.elements, channels, max_elements)
        self.is_whole = self.size == self.elements
        self._channels, self._axis = channels, axis
        self._inner = 1 if channel_is_last else math.prod(x.shape[axis + 1 :])
        self._is_contiguous = x.is_contiguous()
        self._moves = self.is_whole or (channel_is_last and axis != x.dim() - 1)
        self._order = (*(other for other in range(x.dim()) if other != axis), axis)
        self._is_array = (
            x.is_cpu
            and type(x) is Tensor
            and x.dtype in (torch.float32, torch.float64)
            and (channel_is_last or self._is_contiguous)
        )
        self._device = x.device
        # Rounded up, so that the last window of a turn reaches the end of the lattice.
        self._turn = -(-self.elements // max(self.size, 1))
        self._first: np.ndarray | None = None
        self._indices: dict[int, np.ndarray | Tensor] = {}

    def read(self, x: Tensor, call: int) -> np.ndarray | Tensor:
        """Copy the sample of a call, in float32 or wider.

        Args:
            x: The tensor, without gradient history.
            call: Number of the call, which moves the sample on.

        Returns:
            A vector of `size` elements on the tensor's device, an array if that is the CPU and the type allows it.
        """
        return self._read(x, x.numpy() if self._is_array else None, call)

    def read_and_count(self, x: Tensor, call: int) -> tuple[np.ndarray | Tensor, Tensor | None]:
        """`read` and `nonfinite` at once, a little cheaper.

        Args:
            x: The tensor, without gradient history.
            call: Number of the call.

        Returns:
            What both return.
        """
        array = x.numpy() if self._is_array else None
        return self._read(x, array, call), self._nonfinite(x, array)

    def _read(self, x: Tensor, array: np.ndarray | None, call: int) -> np.ndarray | Tensor:
        if array is not None:
            if self._moves:
                array = array.transpose(self._order)
            return array.flatten() if self.is_whole else array.reshape(-1).take(self._index(call), mode="clip")
        last = x.movedim(self._axis, -1)
        # A clone of what is whole: the reshape may be a view of a tensor that an in-place activation overwrites.
        values = last.reshape(-1).clone() if self.is_whole else self._sample(x, call)
        return values.float() if values.itemsize < 4 else values

    def _sample(self, x: Tensor, call: int) -> Tensor:
        flat = (x.movedim(self._axis, -1) if self._inner == 1 else x).reshape(-1)
        return flat.index_select(0, torch.as_tensor(self._index(call)))

    def nonfinite(self, x: Tensor) -> Tensor | None:
        """Count NaN and infinities of each channel exactly, without waiting for the device.

        Args:
            x: The tensor, without gradient history.

        Returns:
            int64 `[C]`; None for none at all, which is known at once on the CPU only.
        """
        return self._nonfinite(x, x.numpy() if self._is_array else None)

    def _nonfinite(self, x: Tensor, array: np.ndarray | None) -> Tensor | None:
        if array is not None and self.elements <= _LONGEST_DOT:
            flat = (array if self._is_contiguous else array.transpose(self._order)).reshape(-1)
            # Squares do not cancel, and are finite for any tensor one would hope for.
            with np.errstate(over="ignore"):
                if math.isfinite(flat.dot(flat)):
                    return None
        elif x.is_cpu and not count_nonfinite(x):
            return None
        return count_channel_nonfinite(x, self._axis)

    def channels_of(self, call: int) -> np.ndarray:
        """The channel of each element that `read` returns.

        Args:
            call: Number of the call.

        Returns:
            int64 `[size]`, on the CPU.
        """
        number = np.arange(self.size) if self.is_whole else self._numbers(call % self._turn)
        return np.asarray(number % self._channels)

    def _numbers(self, phase: int) -> np.ndarray:
        if self._first is None:
            self._first = lattice_index(self.elements, self.size, 0).numpy()
        # All samples of a lattice move on by the same number, round the end.
        number = self._first + phase * self.size * lattice_step(self.elements) % self.elements
        return np.asarray(np.subtract(number, self.elements, out=number, where=number >= self.elements))

    def _index(self, call: int) -> np.ndarray | Tensor:
        phase = call % self._turn
        found = self._indices.get(phase)
        if found is None:
            found = self._offsets(phase)
            if len(self._indices) < _CACHED_INDICES:
                self._indices[phase] = found
        return found

    def _offsets(self, phase: int) -> np.ndarray | Tensor:
        if self._is_array:
            number = torch.from_numpy(self._numbers(phase))
            return memory_offsets(number, channels=self._channels, inner=self._inner).numpy()
        # On the device itself: copying it there would wait for what runs there.
        number = lattice_index(self.elements, self.size, phase * self.size, device=self._device)
        return memory_offsets(number, channels=self._channels, inner=self._inner)
