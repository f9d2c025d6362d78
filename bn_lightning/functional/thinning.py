"""Keep fewer of a summary's elements, at equal distances in rank."""

from dataclasses import replace

import numpy as np
import torch

from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.quantiles import sorted_samples


def thin(summary: ActivationSummary, max_samples: int) -> ActivationSummary:
    """Keep fewer elements for percentiles; moments and counts stay as they are.

    Kept are the elements in the middle of `max_samples` equal shares of the weight, which moves no
    percentile by more than half a share in rank. Of one channel about a random share is
    kept, where channels overlap.

    Args:
        summary: What was recorded.
        max_samples: The most elements to keep.

    Returns:
        The summary itself if it has few enough, else one whose elements carry equal weight.

    Example:
        >>> from bn_lightning.functional.summarise import summarise
        >>> many = summarise(torch.arange(10.0), torch.zeros(10, dtype=torch.long), channels=1, elements=10)
        >>> few = thin(many, 5)
        >>> few.values.tolist(), few.weights.tolist(), few.mean
        ([0.0, 2.0, 4.0, 6.0, 8.0], [2.0, 2.0, 2.0, 2.0, 2.0], 4.5)
    """
    if len(summary.values) <= max_samples:
        return summary
    share = summary.weights.sum() / max_samples
    middles = torch.arange(max_samples, dtype=torch.float64) + 0.5
    channel = None
    if summary.is_uniform:
        place = (middles * (len(summary.values) / max_samples)).ceil().long() - 1
        if summary.channel is None:  # the values alone are sorted several times faster than their order is found
            kept = sorted_samples(summary.values)[place]
        else:
            order = torch.from_numpy(np.argsort(summary.values.numpy(), kind="stable"))[place]
            kept, channel = summary.values[order], summary.channel[order]
    else:
        ordered, order = summary.values.sort(stable=True)
        place = torch.searchsorted(summary.weights[order].cumsum(0), middles * share).clamp(max=len(ordered) - 1)
        kept = ordered[place]
        channel = None if summary.channel is None else summary.channel[order[place]]
    weights = share.expand(max_samples).clone()
    return replace(summary, values=kept, weights=weights, channel=channel)
