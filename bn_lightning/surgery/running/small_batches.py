"""What a norm does where a statistic would be taken over no value, one value or two.

Torch raises for one value in training mode. In a model that was changed from outside this would end a training
run at a last batch of one sample, or at a mixture-of-experts layer that received one token.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bn_lightning.errors import BatchSizeError

Warn = Callable[[nn.Module, str, str], None]
FEW = 2
"""Two values of a channel always become −1 and 1, so they carry next to nothing."""

_WAY_OUT = (
    "Train on batches of two samples or more, with drop_last=True in the DataLoader if only the last one is that small"
)


def values_per_statistic(norm: nn.Module, x: Tensor) -> int | None:
    """Over how many values of `x` each mean of a norm is taken now.

    Args:
        norm: The norm.
        x: What it receives, `[N, C, ...]`.

    Returns:
        For a batch norm N and space together, for an instance norm the space, for a group norm the channels of a
        group and space; None where no mean over several values is taken: by running statistics, along the channels.
    """
    if x.numel() == 0 and isinstance(norm, nn.GroupNorm | _InstanceNorm):
        return 0
    if isinstance(norm, nn.GroupNorm):
        return prod(x.shape[1:]) // norm.num_groups
    if not isinstance(norm, _BatchNorm | _InstanceNorm) or not (norm.training or norm.running_mean is None):
        return None
    if _spans_ranks(norm):
        return None
    return prod(x.shape[2:]) * (x.shape[0] if isinstance(norm, _BatchNorm) else 1)


def _spans_ranks(norm: nn.Module) -> bool:
    """Whether other ranks bring values too, and wait for this one's."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return isinstance(norm, nn.SyncBatchNorm) and distributed and torch.distributed.get_world_size() > 1


def describe_two(norm: nn.Module, x: Tensor, site: str) -> str:
    """The warning for two values: what was met where, and the way out.

    Args:
        norm: The norm.
        x: Its input.
        site: Name of the site.

    Returns:
        The message.
    """
    return (
        f"{_met(norm, x, 2, site)}. Normalised by their own mean and variance these are always −1 and 1. Train on "
        "larger batches, or exclude the site."
    )


def normalize_few(norm: nn.Module, x: Tensor, values: int, site: str, warn: Warn) -> Tensor:
    """Apply a norm to an input that brings each of its statistics one value or none.

    Args:
        norm: The norm.
        x: Its input, `[N, C, ...]`.
        values: How many values there are.
        site: Name of the site, for messages.
        warn: Called with the norm, the site and what the user should know.

    Returns:
        The norm's output by its running statistics, which do not move; where it has none, `x` scaled and shifted.

    Raises:
        BatchSizeError: If a batch norm without running statistics receives a single value per channel.
    """
    tracked = getattr(norm, "running_mean", None) is not None
    if values == 1 and not tracked and isinstance(norm, _BatchNorm):
        raise BatchSizeError(
            f"{_met(norm, x, values, site)}, which has no variance, and it keeps no running statistics to go by "
            f"instead. {_WAY_OUT}, or insert with track_running_stats=True."
        )
    if values == 1:
        done = "used its running statistics, which stay as they are" if tracked else "only scaled and shifted it"
        warn(
            norm,
            site,
            f"{_met(norm, x, values, site)}, which has no variance; for this call it {done}. {_WAY_OUT}.",
        )
    if not tracked or (values == 0 and isinstance(norm, _InstanceNorm)):  # torch's own fails on no sample
        return _scaled(norm, x)
    training = norm.training
    norm.training = False
    try:
        return norm(x)
    finally:
        norm.training = training


def _met(norm: nn.Module, x: Tensor, values: int, site: str) -> str:
    each = "per channel" if isinstance(norm, _BatchNorm) else "per channel and sample"
    each = "per group and sample" if isinstance(norm, nn.GroupNorm) else each
    counted = f"{values} value{'s' if values != 1 else ''} {each}"
    return f"The {type(norm).__name__} at {site!r} received {counted} (shape {tuple(x.shape)})"


def _scaled(norm: nn.Module, x: Tensor) -> Tensor:
    # The parameters take part, so that they have a gradient in every step, as distributed training wants it.
    weight: Any = norm.weight
    bias: Any = norm.bias
    shape = (1, -1, *[1] * (x.ndim - 2))
    scaled = x if weight is None else x * weight.view(shape)
    return (scaled if bias is None else scaled + bias.view(shape)).to(x.dtype)
