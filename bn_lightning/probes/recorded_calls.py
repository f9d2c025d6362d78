"""The calls of one layer that wait to be summarised, and how they are, many at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.power_sums import PowerSums, pool_power_sums
from bn_lightning.functional.summarise import summarise, with_power_sums
from bn_lightning.functional.summarise_window import summarise_window
from bn_lightning.probes.activation_layout import ActivationLayout


class RecordedCall(NamedTuple):
    """What was read in one call.

    Attributes:
        values: The elements read, at least 32 bits wide, on any device.
        layout: How they were.
        number: Of the call, which says where.
        nonfinite: NaN and infinities among all elements by channel, int64 `[C]`; None for none.
        sums: Of all elements, where they were read.
    """

    values: np.ndarray | Tensor
    layout: ActivationLayout
    number: int
    nonfinite: Tensor | None
    sums: PowerSums | None


def summarise_calls(
    calls: Sequence[RecordedCall], channels: int, *, max_samples: int | None, keep_channels: bool
) -> list[ActivationSummary]:
    """Summarise calls of one layer.

    Args:
        calls: In any number.
        channels: Channels of the layer.
        max_samples: The most elements a summary is to keep; more may be kept of calls with non-finite values.
        keep_channels: Whether summaries shall know the channel of each element they keep.

    Returns:
        One summary for each group of calls that read the same share of equally large tensors.
    """
    groups: dict[tuple[object, ...], list[RecordedCall]] = {}
    for call in calls:
        layout = call.layout
        groups.setdefault((layout.elements, layout.size, layout.is_whole, call.sums is None), []).append(call)
    return [_summarised(group, channels, max_samples, keep_channels) for group in groups.values()]


def _summarised(
    group: Sequence[RecordedCall], channels: int, max_samples: int | None, keep_channels: bool
) -> ActivationSummary:
    first = group[0]
    size, elements = first.layout.size, first.layout.elements * len(group)
    sums = [call.sums for call in group if call.sums is not None]
    pooled = pool_power_sums(sums) if sums else None
    nonfinite = [call.nonfinite for call in group if call.nonfinite is not None]
    bad = torch.stack(nonfinite).sum(0).cpu() if nonfinite else None
    if pooled is not None and int(pooled.nonfinite):
        bad = elements // channels - pooled.count.cpu()
    if (bad is not None and bool(bad.any())) or size % channels:
        channel = torch.from_numpy(np.concatenate([call.layout.channels_of(call.number) for call in group]))
        values = torch.from_numpy(_together(group))
        summary = summarise(
            values, channel, channels=channels, elements=elements, nonfinite=bad, keep_channels=keep_channels
        )
        return summary if pooled is None else with_power_sums(summary, pooled)
    # Whole turns of the channels: all calls met the channels in the same order.
    return summarise_window(
        _together(group).reshape(-1, channels),
        first.layout.channels_of(first.number)[:channels],
        elements=elements,
        max_samples=max_samples,
        keep_channels=keep_channels,
        sums=pooled,
    )


def _together(group: Sequence[RecordedCall]) -> np.ndarray:
    values = [call.values for call in group]
    tensors = [part for part in values if isinstance(part, Tensor)]
    if len(tensors) == len(values):
        # One transfer from the device.
        return torch.cat(tensors).cpu().numpy()
    arrays = [part.cpu().numpy() if isinstance(part, Tensor) else part for part in values]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
