"""Which layers and norms folding understands, and how a layer gets its new weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from bn_lightning.functional.folding import Affine, fold_into_input, fold_into_output, inference_affine
from bn_lightning.surgery.running.hooks import OWN_HOOKS

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# A subclass that runs torch's own forward computes what the formulas assume; any other may not.
_FORWARDS = {kind.forward for kind in (nn.Linear, nn.Bilinear, *_CONVOLUTIONS, *_TRANSPOSED)}
_INNER_FORWARDS = {kind._conv_forward for kind in _CONVOLUTIONS}
_ORIGINALS_OF_WEIGHT = "parametrizations.weight."
_NORM_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


def layer_obstacle(layer: nn.Module) -> str:
    """Why the weights of an affine layer cannot take a norm, or an empty string where they can.

    Args:
        layer: Any module.

    Returns:
        The reason, to be read after the layer's name.
    """
    inner = getattr(type(layer), "_conv_forward", None)
    if type(layer).forward not in _FORWARDS or (isinstance(layer, _CONVOLUTIONS) and inner not in _INNER_FORWARDS):
        return f"is a {type(layer).__name__}, of which torch's own layers do not tell what it computes"
    if "forward" in vars(layer):
        return "has had its forward replaced"
    if _hooked(layer):
        return "carries hooks, which would see or make other values than before"
    if not parametrize.is_parametrized(layer, "weight") and type(layer._parameters.get("weight")) is not nn.Parameter:
        return "has a weight that is no plain parameter, such as one that a hook computes at each call"
    weight: Any = layer.weight
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        return f"has a weight of type {type(weight.data).__name__}, {weight.dtype}"
    return ""


def following_obstacle(layer: nn.Module) -> str:
    """Why an affine layer cannot take a norm in front of it, or an empty string where it can.

    Args:
        layer: A layer without `layer_obstacle`.

    Returns:
        The reason, to be read after the layer's name.
    """
    if isinstance(layer, nn.Bilinear | _ConvTransposeNd):
        return f"is a {type(layer).__name__}, to whose outputs the norm's shift would add different amounts"
    if isinstance(layer, _ConvNd) and layer.padding_mode == "zeros" and any(_padding(layer)):
        return (
            f"pads with zeros (padding={layer.padding!r}), to which the norm's shift is not added, so that its border "
            "would come out wrong"
        )
    return ""


def norm_obstacle(norm: nn.Module) -> str:
    """Why a norm is no fixed affine map in evaluation mode, or an empty string where it is one.

    Args:
        norm: Any module.

    Returns:
        The reason, to be read after the norm's name.
    """
    if not isinstance(norm, _BatchNorm):
        return f"is a {type(norm).__name__}, whose statistics depend on its input in evaluation mode too"
    if type(norm).forward not in _NORM_FORWARDS or "forward" in vars(norm):
        return f"is a {type(norm).__name__} with a forward of its own"
    if norm.running_mean is None or norm.running_var is None:
        return "keeps no running statistics, so it uses those of the batch in evaluation mode too"
    if _hooked(norm):
        return "carries hooks, which would be lost with it"
    return ""


def affine_of(norm: nn.Module) -> Affine:
    """The affine map of a norm without `norm_obstacle`.

    Args:
        norm: A batch norm with running statistics.

    Returns:
        Scale and shift, ``[C]``, float64, on the CPU.
    """
    assert isinstance(norm, _BatchNorm)  # noqa: S101 - a norm without an obstacle is one
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - as above
    return inference_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def channel_axis(layer: nn.Module) -> int:
    """The axis, counted from the end, along which an affine layer reads and writes channels.

    Args:
        layer: A layer without `layer_obstacle`.

    Returns:
        -1 for linear layers, one before the spatial axes for convolutions.
    """
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


class FoldedLayer:
    """An affine layer whose weights take norms, in float64 until they are written back.

    Args:
        layer: A layer without `layer_obstacle`; unchanged until `write`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.groups = layer.groups if isinstance(layer, _ConvNd) else 1
        self.weight: Tensor = self._own("weight")
        self.bias: Tensor | None = None if self.layer.bias is None else self._own("bias")

    def _own(self, name: str) -> Tensor:
        value: Tensor = getattr(self.layer, name)
        return value.detach()

    def take_following(self, affine: Affine) -> None:
        """Multiply in a norm that reads this layer's output."""
        transposed = isinstance(self.layer, _ConvTransposeNd)
        self.weight, self.bias = fold_into_output(
            self.weight, self.bias, affine, groups=self.groups, transposed=transposed
        )

    def take_preceding(self, affine: Affine, channels: tuple[int, ...]) -> None:
        """Multiply in a norm whose channels `channels` are this layer's inputs."""
        index = torch.tensor(channels)
        self.weight, self.bias = fold_into_input(self.weight, self.bias, affine, index, groups=self.groups)

    def write(self) -> None:
        """Give the layer its new weights, rounded once to its own type.

        They are parameters of its own, so layers that it was tied to keep theirs.
        """
        layer = self.layer
        weight, bias = layer.weight.detach(), layer.bias
        # A frozen bias of an unfrozen layer stays so; a new one follows the weight.
        trains = {"bias": bias.requires_grad} if isinstance(bias, nn.Parameter) else {}
        made_of = [
            parameter
            for name, parameter in layer.named_parameters()
            if name.startswith(("weight", _ORIGINALS_OF_WEIGHT))
        ]
        trains["weight"] = any(parameter.requires_grad for parameter in made_of)
        if parametrize.is_parametrized(layer):
            # Not remove_parametrizations, which changes the class that copies of the layer share with it.
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer._modules["parametrizations"]
        # Not weight.to(): this keeps the strides, as of channels_last.
        new_weight = torch.empty_like(weight).copy_(self.weight)
        layer.register_parameter("weight", nn.Parameter(new_weight, trains["weight"]))
        assert self.bias is not None  # noqa: S101 - each norm that was taken brought a shift
        like = weight if bias is None else bias
        new_bias = self.bias.to(device=like.device, dtype=like.dtype)
        layer.register_parameter("bias", nn.Parameter(new_bias, trains.get("bias", trains["weight"])))


def _hooked(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(hook not in OWN_HOOKS for hook in hooks)


def _padding(layer: _ConvNd) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        same = layer.padding == "same"
        return tuple(d * (k - 1) if same else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return tuple(layer.padding)
