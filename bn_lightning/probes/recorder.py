"""Read a sample of every activation as it passes, and summarise a window of calls at once.

A hook must be cheap: it picks at most `max_elements` elements by a precomputed index and counts
non-finite values; nothing is sorted, printed, or waited for. The work is done when a window of calls
is summarised. All channels are kept, and the sampled positions move on with each call until every
element had its turn (`functional.sampling`). In the exact mode a hook also reads all elements once, for
moments and extremes (`functional.power_sums`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.activations import (
    ActivationSummary,
    empty_summary,
    merge_summaries,
    thin,
)
from bn_lightning.functional.power_sums import PowerSums, power_sums
from bn_lightning.functional.sampling import count_nonfinite, lattice_index, memory_offsets, sample_size
from bn_lightning.functional.summarise import summarise, summarise_rows, with_power_sums
from bn_lightning.probes.graph_op import numbered, read_in_graph

# Index vectors kept a layout (8 KB each for 1,024 elements): enough for every phase of a small layer.
_CACHED_INDICES = 32
# Layouts kept a layer: the usual batch, the short last one, and some lengths of sequences.
_CACHED_LAYOUTS = 4
# Calls held back before they are folded into summaries, which bounds the memory of a long window.
_PENDING_CALLS = 256
EXACT_SAMPLES = 16384
"""Elements read for percentiles in the exact mode: a standard error of 0.4 % in rank, at most."""

Mode = Literal["sampled", "exact"]


def checked_mode(mode: str) -> str:
    """The mode itself.

    Args:
        mode: What was asked for.

    Returns:
        "sampled" or "exact".

    Raises:
        UnknownNameError: If it is neither.
    """
    if mode not in ("sampled", "exact"):
        raise UnknownNameError(f"Activations are recorded in the mode 'sampled' or 'exact', not {mode!r}.")
    return mode


class _Call(NamedTuple):
    """The elements read in one call; `number % channels` is the channel of each."""

    values: Tensor
    number: Tensor | None
    nonfinite: Tensor
    elements: int
    sums: PowerSums | None


@dataclass
class _Layout:
    """How to read tensors of one shape, strides and device: worked out once, since a hook runs in microseconds."""

    elements: int
    size: int
    inner: int
    channel_is_last: bool
    indices: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class _Slot:
    channels: int
    calls: int = 0
    pending: list[_Call] = field(default_factory=list)
    layouts: dict[tuple[object, ...], _Layout] = field(default_factory=dict)
    summary: ActivationSummary | None = None


class ActivationRecorder:
    """Collects activations by their position in the forward and summarises them.

    It changes nothing in a model and draws no random number. `receive` is what
    `surgery.taps.tap_preactivations` calls; it runs inside hooks. Under torch.compile it becomes one operator
    of the graph while `recording` is on, and nothing while it is off: a graph for each, and no graph break.

    Args:
        channels: Length of the channel axis of each activation.
        max_elements: Elements read a call; None reads all, slowly. In the exact mode the percentiles alone come
            from these, and at least 16,384 are read.
        max_samples: Elements kept a window for percentiles; None keeps all that were read.
        mode: "sampled" or "exact".

    Attributes:
        recording: While False, `receive` does nothing.

    Raises:
        ValueError: If a limit is smaller than 1.
        UnknownNameError: If there is no such mode.

    Example:
        >>> recorder = ActivationRecorder([3])
        >>> recorder.receive("fc", 0, torch.arange(12.0).reshape(4, 3), channel_dim=-1)
        >>> recorder.summaries()[0].moments.mean
        tensor([4.5000, 5.5000, 6.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        max_elements: int | None = 1024,
        max_samples: int | None = 4096,
        mode: Mode = "sampled",
    ) -> None:
        for name, limit in (("max_elements", max_elements), ("max_samples", max_samples)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, or None for no limit; got {limit}.")
        self.is_exact = checked_mode(mode) == "exact"
        if self.is_exact and max_elements is not None:
            max_elements = max(max_elements, EXACT_SAMPLES)
        self.max_elements = max_elements
        self.max_samples = max_samples
        self.recording = True
        self._number = numbered(self)
        self._ticks = torch.zeros(1, dtype=torch.int64)
        self._slots = [_Slot(number) for number in channels]

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
        if torch.compiler.is_compiling():
            read_in_graph(self._ticks, activation.detach(), self._number, index, channel_dim)
        else:
            self.read(index, activation.detach(), channel_dim)

    def read(self, index: int, activation: Tensor, channel_dim: int) -> None:
        """Read a sample of an activation, whether `recording` is on or not.

        Args:
            index: Its position in `channels`.
            activation: The tensor, without gradient history.
            channel_dim: Its channel axis.
        """
        slot, x = self._slots[index], activation
        key = (x.shape, x.stride(), x.device, channel_dim)
        layout = slot.layouts.get(key)
        if layout is None:
            layout = self._layout(slot, x, channel_dim)
            if len(slot.layouts) >= _CACHED_LAYOUTS:
                slot.layouts.clear()
            slot.layouts[key] = layout
        elements = layout.elements
        if elements == 0:
            return
        if layout.size == elements:
            values, number = x.movedim(channel_dim, -1).reshape(-1), None
            # A clone: the reshape may be a view of a tensor that an in-place activation overwrites.
            values = values.clone()
        else:
            last = x if layout.channel_is_last else x.movedim(channel_dim, -1)
            flat = last.reshape(-1) if layout.inner == 1 else x.reshape(-1)
            number, offsets = _index(layout, slot, x.device)
            values = flat.index_select(0, offsets)
        if values.itemsize < 4:
            values = values.float()
        # What is kept whole anyway needs no second pass.
        if self.is_exact and layout.size < elements:
            sums = power_sums(x, channel_dim)
            slot.pending.append(_Call(values, number, sums.nonfinite, elements, sums))
        else:
            slot.pending.append(_Call(values, number, count_nonfinite(x), elements, None))
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

    def _layout(self, slot: _Slot, x: Tensor, channel_dim: int) -> _Layout:
        elements, axis = x.numel(), channel_dim % x.dim()
        contiguous = x.movedim(axis, -1).is_contiguous()
        return _Layout(
            elements=elements,
            size=sample_size(elements, slot.channels, self.max_elements),
            inner=1 if contiguous else math.prod(x.shape[axis + 1 :]),
            channel_is_last=contiguous and axis == x.dim() - 1,
        )

    def _fold(self, slot: _Slot) -> None:
        for part in _summarised(slot.pending, slot.channels):
            slot.summary = part if slot.summary is None else merge_summaries(slot.summary, part)
        if slot.summary is not None and self.max_samples is not None:
            slot.summary = thin(slot.summary, self.max_samples)
        slot.pending.clear()


def _index(layout: _Layout, slot: _Slot, device: torch.device) -> tuple[Tensor, Tensor]:
    # Rounded up, so that the last window of a turn reaches the end of the lattice.
    phase = slot.calls % -(-layout.elements // layout.size)
    found = layout.indices.get(phase)
    if found is None:
        number = lattice_index(layout.elements, layout.size, phase * layout.size, device=device)
        found = number, memory_offsets(number, channels=slot.channels, inner=layout.inner)
        if len(layout.indices) < _CACHED_INDICES:
            layout.indices[phase] = found
    return found


def _summarised(calls: Sequence[_Call], channels: int) -> list[ActivationSummary]:
    parts = _summarised_together([call for call in calls if call.sums is None], channels)
    for call in calls:
        if call.sums is not None:
            parts += [with_power_sums(part, call.sums) for part in _summarised_together([call], channels)]
    return parts


def _summarised_together(calls: Sequence[_Call], channels: int) -> list[ActivationSummary]:
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
