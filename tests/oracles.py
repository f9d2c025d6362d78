"""Slow, plain float64 versions of what the package computes fast; each on its own, sharing no code with it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def pooled_statistics(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of all values of all batches (channel axis 1)."""
    values = np.concatenate([_channels_last(batch) for batch in batches])
    return torch.from_numpy(values.mean(0)), torch.from_numpy(values.var(0))


def paper_statistics(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Algorithm 2: the mean of the batch means, and of the m/(m-1)-corrected batch variances."""
    values = [_channels_last(batch) for batch in batches]
    means = np.stack([batch.mean(0) for batch in values])
    variances = np.stack([batch.var(0) * len(batch) / (len(batch) - 1) for batch in values])
    return torch.from_numpy(means.mean(0)), torch.from_numpy(variances.mean(0))


def _channels_last(batch: Tensor) -> np.ndarray:
    array = np.moveaxis(batch.detach().double().numpy(), 1, -1)
    return array.reshape(-1, array.shape[-1])


def norm_inputs(model: nn.Sequential, batches: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The inputs of every batch norm of a chain, in float64, each norm using its batch's statistics.

    Dropout and any other module act as in evaluation mode. `model` itself is not run.
    """
    inputs: dict[str, list[Tensor]] = {}
    for batch in batches:
        x = batch.double()
        for name, module in model.named_children():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                inputs.setdefault(name, []).append(x)
                axes = [axis for axis in range(x.dim()) if axis != 1]
                x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + module.eps).sqrt()
                if module.weight is not None:
                    shape = (1, -1, *[1] * (x.dim() - 2))
                    x = x * module.weight.detach().double().view(shape) + module.bias.detach().double().view(shape)
            elif isinstance(module, nn.Linear):
                x = x @ module.weight.detach().double().T
                x = x if module.bias is None else x + module.bias.detach().double()
            elif isinstance(module, nn.Conv2d):
                bias = None if module.bias is None else module.bias.detach().double()
                x = nn.functional.conv2d(
                    x, module.weight.detach().double(), bias, module.stride, module.padding, module.dilation
                )
            elif isinstance(module, nn.Dropout):
                pass
            elif isinstance(module, nn.ReLU | nn.Sigmoid | nn.Flatten):
                x = module(x)
            else:
                raise TypeError(f"The oracle has no float64 version of {module}.")
    return inputs


def standardised_moments(values: np.ndarray) -> tuple[float, float]:
    """Skewness and excess kurtosis of a sample with exact summation."""
    n = len(values)
    mean = math.fsum(values) / n
    m2, m3, m4 = (math.fsum((value - mean) ** power for value in values) / n for power in (2, 3, 4))
    return m3 / m2**1.5, m4 / m2**2 - 3
