"""How the norm for a site is made, and what each kind reduces.

Which axes one mean and one variance are taken over (γ and β are one per channel throughout):

==========  ======  =========  ============  ==============  ============================================
name        [N, C]  [N, C, L]  [N, C, H, W]  [B, T, C]       source, and class of torch
==========  ======  =========  ============  ==============  ============================================
batch       N       N, L       N, H, W       B, T            Ioffe & Szegedy 2015; BatchNorm1d to 3d
layer       C       C, L       C, H, W       C               Ba et al. 2016, all units of the layer in one
                                                             sample; LayerNorm, for images GroupNorm(1, C)
group       group   group, L   group, H, W   group           Wu & He 2018; GroupNorm
instance    none    L          H, W          T               Ulyanov et al. 2016; InstanceNorm1d to 3d
rms         C       C          C             C               Zhang & Sennrich 2019, no mean is subtracted,
                                                             each position by itself; RMSNorm
==========  ======  =========  ============  ==============  ============================================

[N, C, L] and [N, C, H, W] stand for channels on axis 1 with space behind them, [B, T, C] for channels anywhere
else. An option that is not given has the default of torch's class; so `affine` is False for "instance" and True
for the others. "group" takes gcd(32, C) groups (32 by default in section 4 of the paper), and where a sample has
one value a channel as few as leave 16 channels in each: two values of a group would always become −1 and 1.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bn_lightning.errors import NormOptionError
from bn_lightning.surgery.plan import NormFactory, Site
from bn_lightning.surgery.running.norm_kinds import check_norm

_MIN_GROUP = 16


def channels_second(site: Site) -> bool:
    """Whether the channels of a site are on axis 1, where torch's norms expect them.

    Args:
        site: The site.

    Returns:
        True for [N, C, ...].
    """
    return len(site.shape) + site.channel_dim == 1


def make_norm(
    site: Site, norm: str | NormFactory, neighbour: Tensor | None, norm_options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Make the norm for a site, on the device and in the type of the neighbouring layer.

    Args:
        site: The site.
        norm: Name of a norm, or a factory that makes a module for a number of channels.
        neighbour: A parameter of the neighbouring layer; None where there is none.
        norm_options: Arguments of the norm.

    Returns:
        The norm, in training mode.

    Raises:
        UnknownNameError: If there is no such norm or argument.
        NormOptionError: If an argument cannot have that value, the norm has nothing to reduce at this site, or the
            factory makes no module.
    """
    check_norm(norm, norm_options)
    # Made as tensors for training and where the layer is, even if insertion runs in inference mode or within the
    # context of another device, such as "meta", from which nothing could be moved.
    with torch.inference_mode(False), nullcontext() if neighbour is None else torch.device(neighbour.device):
        made: Any = _by_name(site, norm, dict(norm_options or {})) if isinstance(norm, str) else norm(site.channels)
        if not isinstance(made, nn.Module):
            raise NormOptionError(
                f"The norm factory made {made!r} for the {site.channels} channels of the site {site.name!r}, and must "
                "make a module, as in norm=lambda channels: nn.BatchNorm1d(channels, momentum=0.01)."
            )
        if neighbour is not None:
            made = made.to(device=neighbour.device, dtype=neighbour.dtype if neighbour.is_floating_point() else None)
    return cast(nn.Module, made)


def _by_name(site: Site, norm: str, options: dict[str, Any]) -> nn.Module:
    space = len(site.shape) - 2 if channels_second(site) else 0
    if norm == "batch":
        kind: Callable[..., nn.Module] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}.get(space, nn.BatchNorm1d)
        return kind(site.channels, **options)
    if norm == "instance":
        if len(site.shape) < 3:
            raise NormOptionError(
                "An instance norm averages each channel of a sample over space or time, and the site "
                f"{site.name!r} has neither (shape {tuple(site.shape)}). Exclude it, or take norm='layer' or 'batch'."
            )
        kind = {4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(len(site.shape), nn.InstanceNorm1d)
        return kind(site.channels, **options)
    if norm == "group":
        return nn.GroupNorm(_num_groups(site, options.pop("num_groups", None), space), site.channels, **options)
    if norm == "layer" and space:
        return nn.GroupNorm(1, site.channels, **options)
    if "affine" in options:
        options["elementwise_affine"] = options.pop("affine")
    return nn.LayerNorm(site.channels, **options) if norm == "layer" else nn.RMSNorm(site.channels, **options)


def _num_groups(site: Site, given: int | None, space: int) -> int:
    channels = site.channels
    if given is None:
        groups = math.gcd(32, channels)
        while not space and groups > 1 and channels // groups < _MIN_GROUP:
            groups //= 2
        return groups
    if channels % given:
        raise NormOptionError(
            f"num_groups={given} does not divide the {channels} channels of the site {site.name!r}. Exclude the site, "
            f"or leave num_groups out, which takes {math.gcd(32, channels)} there."
        )
    if given == channels and not space:
        raise NormOptionError(
            f"num_groups={given} leaves one channel in each group of the site {site.name!r}, which has one value a "
            f"channel (shape {tuple(site.shape)}): every group would become zero. Take fewer groups."
        )
    return given


def cancels_bias(norm: nn.Module) -> bool:
    """Whether a norm subtracts a mean of each channel, so that a bias in front of it has no effect.

    Args:
        norm: A norm made for a site.

    Returns:
        True for batch and instance norms, and for group norms with one channel a group.
    """
    return isinstance(norm, _BatchNorm | _InstanceNorm) or (
        isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    )


def is_untouched(norm: nn.Module) -> bool:
    """Whether a norm is as it was made: no batch seen, scale one, shift zero.

    Args:
        norm: An inserted norm.

    Returns:
        False also for norms whose first state is not known, or that have none which training would change. A norm on
        the meta device has no values yet, so it is as it was made.
    """
    if any(tensor.is_meta for tensor in (*norm.parameters(), *norm.buffers())):
        return True
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(norm, _BatchNorm):
        fresh = norm.num_batches_tracked is None or int(norm.num_batches_tracked) == 0
    else:
        fresh = isinstance(norm, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | _InstanceNorm) and weight is not None
    scale = weight is None or bool((weight == torch.ones_like(weight)).all())
    shift = bias is None or bool((bias == torch.zeros_like(bias)).all())
    return fresh and scale and shift
