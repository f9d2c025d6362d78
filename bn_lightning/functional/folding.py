"""The affine map that a batch norm is in evaluation mode, and its product with a neighbouring affine layer.

All arithmetic is in float64 on the CPU, whatever the type of the weights; who stores a result rounds it once.
Weights are those of torch: ``[out, in]`` for linear, ``[out, in/groups, *kernel]`` for convolutions,
``[in, out/groups, *kernel]`` for transposed convolutions, ``[out, in1, in2]`` for bilinear layers.
"""

from typing import NamedTuple

from jaxtyping import Float, Float64, Int64
from torch import Tensor


class Affine(NamedTuple):
    """y = scale · x + shift for each channel.

    Attributes:
        scale: ``[C]``, float64.
        shift: ``[C]``, float64.
    """

    scale: Tensor
    shift: Tensor


def inference_affine(
    mean: Float[Tensor, " c"],
    variance: Float[Tensor, " c"],
    gamma: Float[Tensor, " c"] | None = None,
    beta: Float[Tensor, " c"] | None = None,
    *,
    eps: float = 1e-5,
) -> Affine:
    """What a batch norm does to a channel once its statistics are fixed.

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 11::

        scale = γ/√(Var[x] + ε)        shift = β − scale · E[x]

    Args:
        mean: The population mean E[x].
        variance: The population variance Var[x].
        gamma: The scale γ; None is 1.
        beta: The shift β; None is 0.
        eps: ε, added to the variance.

    Returns:
        Scale and shift.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> scale, shift = inference_affine(3 * one, 4 * one, 2 * one, one, eps=0.0)
        >>> scale.item(), shift.item()
        (1.0, -2.0)
    """
    scale = (_exact(variance) + eps).rsqrt()
    if gamma is not None:
        scale = scale * _exact(gamma)
    shift = -scale * _exact(mean)
    return Affine(scale, shift if beta is None else shift + _exact(beta))


def fold_into_output(
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, " c"] | None,
    affine: Affine,
    *,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, " c"]]:
    """Weight and bias of the one layer that equals an affine layer and a batch norm behind it.

    With a layer W x + b::

        W' = scale · W        b' = scale · b + shift

    Exact for every padding, stride and dilation, as the map acts on each output alone.

    Args:
        weight: The layer's weight, in torch's layout.
        bias: Its bias; None is 0.
        affine: The norm, with as many channels as the layer has outputs.
        groups: Groups of a convolution. Only a transposed one keeps its outputs by group.
        transposed: Whether the layer is a transposed convolution.

    Returns:
        W' of the weight's shape, and b'.

    Example:
        >>> import torch
        >>> two = torch.full((1,), 2.0, dtype=torch.float64)
        >>> weight, bias = fold_into_output(torch.tensor([[3.0]]), torch.tensor([1.0]), Affine(two, two))
        >>> weight.item(), bias.item()
        (6.0, 4.0)
    """
    exact = _exact(weight)
    if transposed:
        inputs = exact.shape[0]
        grouped = exact.reshape(groups, inputs // groups, *exact.shape[1:])
        scale = affine.scale.view(groups, 1, -1, *[1] * (exact.ndim - 2))
        folded = (grouped * scale).reshape(exact.shape)
    else:
        folded = exact * affine.scale.view(-1, *[1] * (exact.ndim - 1))
    return folded, affine.shift if bias is None else affine.scale * _exact(bias) + affine.shift


def fold_into_input(
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, " out"] | None,
    affine: Affine,
    channels: Int64[Tensor, " inputs"],
    *,
    groups: int = 1,
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, " out"]]:
    """Weight and bias of the one layer that equals a batch norm and an affine layer behind it.

    With a layer W x + b whose input i carries the norm's channel c(i)::

        W'[o, i] = W[o, i] · scale[c(i)]        b'[o] = b[o] + Σ W[o, i] · shift[c(i)]

    the sum over the layer's inputs and, for a convolution, its kernel. Exact where every tap of the
    kernel meets an output of the norm: not at borders padded with zeros, nor for transposed convolutions.

    Args:
        weight: The weight of a linear layer or a convolution, in torch's layout.
        bias: Its bias; None is 0.
        affine: The norm.
        channels: c(i), the norm's channel that arrives at each input of the layer.
        groups: Groups of a convolution.

    Returns:
        W' of the weight's shape, and b'.

    Example:
        >>> import torch
        >>> two = torch.full((1,), 2.0, dtype=torch.float64)
        >>> weight, bias = fold_into_input(torch.tensor([[3.0]]), None, Affine(two, two), torch.tensor([0]))
        >>> weight.item(), bias.item()
        (6.0, 6.0)
    """
    exact = _exact(weight)
    outputs = exact.shape[0]
    # An output of group g meets only the inputs of group g.
    scale, shift = (
        part[channels]
        .view(groups, -1)
        .repeat_interleave(outputs // groups, 0)
        .view(outputs, -1, *[1] * (exact.ndim - 2))
        for part in affine
    )
    added = (exact * shift).flatten(1).sum(1)
    return exact * scale, added if bias is None else added + _exact(bias)


def _exact(values: Tensor) -> Tensor:
    # On the CPU, as not every accelerator has float64.
    return values.detach().cpu().double()
