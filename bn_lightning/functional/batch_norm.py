"""Batch normalization as published: forward, closed-form backward, inference transform.

Every function reduces over all axes but the channel axis, which is axis 1:

========================  ====================  =====================
input                     reduced axes          m (values a channel)
========================  ====================  =====================
``[N, C]``                batch                 N
``[N, C, L]``             batch, length         N · L
``[N, C, H, W]``          batch, rows, columns  N · H · W
========================  ====================  =====================

The functions follow the paper line by line and are slow; they are what the fused layers are checked against.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BatchNormOutput(NamedTuple):
    """What Algorithm 1 computes from one batch.

    Attributes:
        y: The output, of the input's shape.
        normalized: x̂, the input with mean 0 and variance near 1 per channel.
        mean: μ_B, the batch mean, ``[C]``.
        variance: σ²_B, the biased batch variance (divided by m), ``[C]``.
    """

    y: Tensor
    normalized: Tensor
    mean: Tensor
    variance: Tensor


class BatchNormGradients(NamedTuple):
    """The gradients of a loss with respect to the input, the scale and the shift.

    Attributes:
        x: ∂ℓ/∂x, of the input's shape.
        gamma: ∂ℓ/∂γ, ``[C]``.
        beta: ∂ℓ/∂β, ``[C]``.
    """

    x: Tensor
    gamma: Tensor
    beta: Tensor


def batch_norm(
    x: Float[Tensor, "n c *spatial"],
    gamma: Float[Tensor, " c"],
    beta: Float[Tensor, " c"],
    *,
    eps: float = 1e-5,
) -> BatchNormOutput:
    """Normalise a batch by its own statistics, then scale and shift: Algorithm 1.

    Source: Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by
    Reducing Internal Covariate Shift", Algorithm 1. With m values a channel::

        μ_B = 1/m Σ x        σ²_B = 1/m Σ (x − μ_B)²
        x̂ = (x − μ_B) / √(σ²_B + ε)        y = γ x̂ + β

    This is what a layer in training mode computes. σ²_B is biased; only the *running* variance of
    torch's layers is unbiased, by the factor m/(m − 1).

    Args:
        x: The input.
        gamma: The scale γ.
        beta: The shift β.
        eps: ε, added to the variance.

    Returns:
        The output, the normalised input, and the batch's mean and biased variance.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> output = batch_norm(x, torch.ones(1), torch.zeros(1), eps=0.0)
        >>> output.y.flatten().tolist(), output.mean.item(), output.variance.item()
        ([-1.0, 1.0], 2.0, 1.0)
    """
    axes = _reduced_axes(x)
    mean = x.mean(axes)
    centred = x - _per_channel(mean, x)
    variance = centred.square().mean(axes)
    normalized = centred / _per_channel((variance + eps).sqrt(), x)
    y = _per_channel(gamma, x) * normalized + _per_channel(beta, x)
    return BatchNormOutput(y, normalized, mean, variance)


def batch_norm_backward(
    grad_y: Float[Tensor, "n c *spatial"],
    x: Float[Tensor, "n c *spatial"],
    gamma: Float[Tensor, " c"],
    *,
    eps: float = 1e-5,
) -> BatchNormGradients:
    """Gradients through Algorithm 1, the batch's statistics included.

    Source: Ioffe & Szegedy (2015), section 3, the six formulas below Algorithm 1. They hold for the
    training mode, where μ_B and σ²_B depend on every x of the batch::

        ∂ℓ/∂x̂  = ∂ℓ/∂y · γ
        ∂ℓ/∂σ² = Σ ∂ℓ/∂x̂ · (x − μ) · (−1/2)(σ² + ε)^(−3/2)
        ∂ℓ/∂μ  = Σ ∂ℓ/∂x̂ · (−1/√(σ² + ε)) + ∂ℓ/∂σ² · Σ −2(x − μ) / m
        ∂ℓ/∂x  = ∂ℓ/∂x̂ · 1/√(σ² + ε) + ∂ℓ/∂σ² · 2(x − μ)/m + ∂ℓ/∂μ · 1/m
        ∂ℓ/∂γ  = Σ ∂ℓ/∂y · x̂
        ∂ℓ/∂β  = Σ ∂ℓ/∂y

    Args:
        grad_y: ∂ℓ/∂y, the gradient that arrives at the output.
        x: The input of the forward.
        gamma: The scale γ.
        eps: ε of the forward.

    Returns:
        The gradients of x, γ and β. ∂ℓ/∂x sums to 0 over every channel, as y does not move when
        the whole channel is shifted.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
        >>> grad = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
        >>> gradients = batch_norm_backward(grad, x, torch.ones(1, dtype=torch.float64))
        >>> abs(gradients.x.sum().item()) < 1e-12, gradients.beta.item()
        (True, 1.0)
    """
    axes = _reduced_axes(x)
    _, normalized, mean, variance = batch_norm(x, gamma, torch.zeros_like(gamma), eps=eps)
    m = x.numel() // x.shape[1]
    centred = x - _per_channel(mean, x)
    grad_normalized = grad_y * _per_channel(gamma, x)
    grad_variance = (grad_normalized * centred).sum(axes) * -0.5 * (variance + eps) ** -1.5
    grad_mean = -grad_normalized.sum(axes) / (variance + eps).sqrt() + grad_variance * (-2 * centred).sum(axes) / m
    grad_x = (
        grad_normalized / _per_channel((variance + eps).sqrt(), x)
        + _per_channel(grad_variance, x) * 2 * centred / m
        + _per_channel(grad_mean, x) / m
    )
    return BatchNormGradients(grad_x, (grad_y * normalized).sum(axes), grad_y.sum(axes))


def batch_norm_inference(
    x: Float[Tensor, "n c *spatial"],
    gamma: Float[Tensor, " c"],
    beta: Float[Tensor, " c"],
    mean: Float[Tensor, " c"],
    variance: Float[Tensor, " c"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "n c *spatial"]:
    """The linear transform that batch normalization is at inference: Algorithm 2, last line.

    Source: Ioffe & Szegedy (2015), Algorithm 2::

        y = γ/√(Var[x] + ε) · x + (β − γ E[x]/√(Var[x] + ε))

    This is what a layer in evaluation mode computes, with the running statistics in place of the
    population's.

    Args:
        x: The input.
        gamma: The scale γ.
        beta: The shift β.
        mean: E[x], the population mean per channel.
        variance: Var[x], the population variance per channel.
        eps: ε, added to the variance.

    Returns:
        The output, of the input's shape; each sample's depends on that sample alone.

    Example:
        >>> one = torch.ones(1)
        >>> batch_norm_inference(torch.tensor([[5.0]]), 2 * one, one, 3 * one, 4 * one, eps=0.0).item()
        3.0
    """
    scale = gamma / (variance + eps).sqrt()
    return _per_channel(scale, x) * x + _per_channel(beta - scale * mean, x)


def _reduced_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.dim()) if axis != 1)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))
