"""The running statistics of all norms of a model at once: copy them, write them, compare them."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, dict[str, Tensor]]


def running_statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a norm that keeps them.

    Args:
        norm: A norm with ``track_running_stats=True``.

    Returns:
        The two buffers themselves.
    """
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


def statistics_of(model: nn.Module) -> Statistics:
    """Copies of the running statistics of every batch norm that has some.

    Args:
        model: Any module.

    Returns:
        ``{norm's path: {"mean": [C], "variance": [C]}}``; plain tensors, also when called in inference mode.

    Example:
        >>> statistics_of(nn.Sequential(nn.BatchNorm1d(2)))
        {'0': {'mean': tensor([0., 0.]), 'variance': tensor([1., 1.])}}
    """
    with torch.inference_mode(False), torch.no_grad():
        return {
            name: {"mean": mean.clone(), "variance": variance.clone()}
            for name, (mean, variance) in _buffers(model).items()
        }


def write_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Write statistics into the norms of the same paths, in place; norms that are not named keep theirs.

    Args:
        model: The module; its buffers are overwritten.
        statistics: As `statistics_of` returns them, on any device.
    """
    with torch.no_grad():
        for name, (mean, variance) in _buffers(model).items():
            if name in statistics:
                mean.copy_(statistics[name]["mean"])
                variance.copy_(statistics[name]["variance"])


def holds_statistics(model: nn.Module, statistics: Statistics) -> bool:
    """Whether the norms of a model hold exactly these statistics.

    Args:
        model: Any module.
        statistics: As `statistics_of` returns them, on any device.

    Returns:
        True if the paths and all values are equal.
    """
    held = statistics_of(model)
    return held.keys() == statistics.keys() and all(
        torch.equal(held[name][part].cpu(), value.cpu())
        for name, values in statistics.items()
        for part, value in values.items()
    )


def _buffers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: running_statistics(norm)
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    }
