"""Read a sample of every activation as it passes, and summarise a window of calls at once.

A hook must be cheap: it picks at most `max_elements` elements by a precomputed index and counts
non-finite values; nothing is sorted, printed, or waited for. The work is done when a window of calls
is summarised. All channels are kept, and the sampled positions move on with each call until every
element had its turn (`functional.sampling`). In the exact mode a hook also reads all elements once, for
moments and extremes (`functional.power_sums`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.activations import ActivationSummary, empty_summary, merge_summaries
from bn_lightning.functional.power_sums import power_sums
from bn_lightning.functional.thinning import thin
from bn_lightning.probes.activation_layout import ActivationLayout
from bn_lightning.probes.graph_op import numbered, read_in_graph
from bn_lightning.probes.recorded_calls import RecordedCall, summarise_calls

# Layouts kept a layer: the usual batch, the short last one, and some lengths of sequences.
_CACHED_LAYOUTS = 4
# Elements of a layer held back before they are folded into summaries, which bounds the memory of a long window.
_WAITING_ELEMENTS = 1 << 18
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


@dataclass(slots=True)
class _Slot:
    channels: int
    calls: int = 0
    waiting: int = 0
    pending: list[RecordedCall] = field(default_factory=list)
    layouts: dict[tuple[object, ...], ActivationLayout] = field(default_factory=dict)
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
        keep_channels: Whether summaries shall know the channel of each element they keep, for percentiles of single
            channels; thinning then takes several times as long.

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
        keep_channels: bool = False,
    ) -> None:
        for name, limit in (("max_elements", max_elements), ("max_samples", max_samples)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, or None for no limit; got {limit}.")
        self.is_exact = checked_mode(mode) == "exact"
        if self.is_exact and max_elements is not None:
            max_elements = max(max_elements, EXACT_SAMPLES)
        self.max_elements = max_elements
        self.max_samples = max_samples
        self.keep_channels = keep_channels
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

        A tensor whose channel axis is missing or of another length than its slot's counts for nothing.

        Args:
            index: Its position in `channels`.
            activation: The tensor, without gradient history.
            channel_dim: Its channel axis.
        """
        slot, x = self._slots[index], activation
        key = (x.shape, x.stride(), x.dtype, x.device, channel_dim)
        layout = slot.layouts.get(key)
        if layout is None:
            # Layers may change while hooks are on.
            if not -x.dim() <= channel_dim < x.dim() or x.shape[channel_dim] != slot.channels:
                return
            layout = ActivationLayout(x, channel_dim, channels=slot.channels, max_elements=self.max_elements)
            if len(slot.layouts) >= _CACHED_LAYOUTS:
                slot.layouts.clear()
            slot.layouts[key] = layout
        if not layout.elements:
            return
        calls = slot.calls
        # What is kept whole anyway needs no second pass.
        if self.is_exact and not layout.is_whole:
            values = layout.read(x, calls)
            slot.pending.append(RecordedCall(values, layout, calls, None, power_sums(x, channel_dim)))
        else:
            values, nonfinite = layout.read_and_count(x, calls)
            slot.pending.append(RecordedCall(values, layout, calls, nonfinite, None))
        slot.calls = calls + 1
        slot.waiting += layout.size
        if slot.waiting >= _WAITING_ELEMENTS:
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
            slot.waiting = 0
            slot.summary = None

    def _fold(self, slot: _Slot) -> None:
        parts = summarise_calls(
            slot.pending, slot.channels, max_samples=self.max_samples, keep_channels=self.keep_channels
        )
        for part in parts:
            slot.summary = part if slot.summary is None else merge_summaries(slot.summary, part)
        if slot.summary is not None and self.max_samples is not None:
            slot.summary = thin(slot.summary, self.max_samples)
        slot.pending.clear()
        slot.waiting = 0
