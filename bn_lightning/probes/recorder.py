"""Read a sample of every activation as it passes, and summarise a window of calls at once.

A hook must be cheap: it picks at most `max_elements` elements by a precomputed index and counts
non-finite values; nothing is sorted, printed, or waited for. The work is done when a window of calls
is summarised. All channels are kept, and the sampled positions move on with each call until every
element had its turn (`functional.sampling`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bn_lightning.functional.activations import (
    ActivationSummary,
    empty_summary,
    merge_summaries,
    thin,
)
from bn_lightning.functional.sampling import count_nonfinite, lattice_index, memory_offsets, sample_size
from bn_lightning.functional.summarise import summarise, summarise_rows

# Index vectors kept a layer (8 KB each for 1,024 elements): enough for every phase of a small layer.
_CACHED_INDICES = 32
# Calls held back before they are folded into summaries, which bounds the memory of a long window.
_PENDING_CALLS = 256


class _Call(NamedTuple):
    """The elements read in one call; `number % channels` is the channel of each."""

    values: Tensor
    number: Tensor | None
    nonfinite: Tensor
    elements: int


@dataclass
class _Slot:
    channels: int
    calls: int = 0
    pending: list[_Call] = field(default_factory=list)
    indices: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    summary: ActivationSummary | None = None


class ActivationRecorder:
    """Collects activations by their position in the forward and summarises them.

    It changes nothing in a model and draws no random number. `receive` is what
    `surgery.taps.tap_preactivations` calls; it runs inside hooks, and under torch.compile breaks the
    graph there.

    Args:
        channels: Length of the channel axis of each activation.
        max_elements: Elements read a call; None reads all, which is exact and slow.
        max_samples: Elements kept a window for percentiles; None keeps all that were read.

    Attributes:
        recording: While False, `receive` does nothing.

    Raises:
        ValueError: If a limit is smaller than 1.

    Example:
        >>> recorder = ActivationRecorder([3])
        >>> recorder.receive("fc", 0, torch.arange(12.0).reshape(4, 3), channel_dim=-1)
        >>> recorder.summaries()[0].moments.mean
        tensor([4.5000, 5.5000, 6.5000], dtype=torch.float64)
    """

    def __init__(
        self, channels: Sequence[int], *, max_elements: int | None = 1024, max_samples: int | None = 4096
    ) -> None:
        for name, limit in (("max_elements", max_elements), ("max_samples", max_samples)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, or None for no limit; got {limit}.")
        self.max_elements = max_elements
        self.max_samples = max_samples
        self.recording = True
        self._slots = [_Slot(number) for number in channels]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch publishes it untyped
    def receive(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        """Read a sample of `activation`; what happens to the tensor afterwards does not matter.

        Args:
            layer: Path of the layer; not used, as it may come several times.
            index: Its position in `channels`.
            activation: The tensor, of any floating-point type, on any device.
            channel_dim: Its channel axis.
        """
        if not self.recording:
            return
        slot = self._slots[index]
        x = activation.detach()
        elements = x.numel()
        if elements == 0:
            return
        size = sample_size(elements, slot.channels, self.max_elements)
        if size == elements:
            values, number = x.movedim(channel_dim, -1).reshape(-1), None
            # A clone: the reshape may be a view of a tensor that an in-place activation overwrites.
            values = values.clone()
        else:
            flat, inner = _flattened(x, channel_dim)
            number, offsets = self._index(slot, elements, size, inner, x.device)
            values = flat.index_select(0, offsets)
        if values.itemsize < 4:
            values = values.float()
        slot.pending.append(_Call(values, number, count_nonfinite(x), elements))
        slot.calls += 1
        if len(slot.pending) >= _PENDING_CALLS:
            self._fold(slot)

    def summaries(self) -> tuple[ActivationSummary, ...]:
        """One summary for each activation over all calls since the last `reset`, on the CPU."""
        for slot in self._slots:
            self._fold(slot)
        return tuple(slot.summary or empty_summary(slot.channels) for slot in self._slots)

    def reset(self) -> None:
        """Begin a new window; the positions sampled go on from where they were."""
        for slot in self._slots:
            slot.pending.clear()
            slot.summary = None

    def _index(self, slot: _Slot, elements: int, size: int, inner: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Rounded up, so that the last window of a turn reaches the end of the lattice.
        phase = slot.calls % -(-elements // size)
        key = (elements, size, inner, phase, device)
        found = slot.indices.get(key)
        if found is None:
            number = lattice_index(elements, size, phase * size, device=device)
            found = number, memory_offsets(number, channels=slot.channels, inner=inner)
            if len(slot.indices) < _CACHED_INDICES:
                slot.indices[key] = found
        return found

    def _fold(self, slot: _Slot) -> None:
        for part in _summarised(slot.pending, slot.channels):
            slot.summary = part if slot.summary is None else merge_summaries(slot.summary, part)
        if slot.summary is not None and self.max_samples is not None:
            slot.summary = thin(slot.summary, self.max_samples)
        slot.pending.clear()


def _flattened(x: Tensor, channel_dim: int) -> tuple[Tensor, int]:
    """The tensor as one axis in memory order if possible, and the stride of its channels in it."""
    axis = channel_dim % x.dim()
    last = x if axis == x.dim() - 1 else x.movedim(axis, -1)
    if last.is_contiguous():
        return last.view(-1), 1
    return x.reshape(-1), math.prod(x.shape[axis + 1 :])


def _summarised(calls: Sequence[_Call], channels: int) -> list[ActivationSummary]:
    """One summary for each group of calls that read the same share of equally large tensors."""
    groups: dict[tuple[int, int], list[_Call]] = {}
    for call in calls:
        groups.setdefault((call.elements, len(call.values)), []).append(call)
    parts = []
    for (elements, size), group in groups.items():
        values = torch.cat([call.values for call in group])
        nonfinite = int(torch.stack([call.nonfinite for call in group]).sum())
        total = elements * len(group)
        if nonfinite or size % channels:
            channel = torch.cat([_channels_of(call, size) % channels for call in group])
            parts.append(summarise(values, channel, channels=channels, elements=total, nonfinite=nonfinite))
        else:
            # Whole turns of the channels: all calls met the channels in the same order.
            order = _channels_of(group[0], channels) % channels
            parts.append(summarise_rows(values.view(-1, channels), order, elements=total))
    return parts


def _channels_of(call: _Call, size: int) -> Tensor:
    return torch.arange(size) if call.number is None else call.number[:size].cpu()
