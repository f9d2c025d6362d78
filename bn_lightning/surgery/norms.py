"""The container that holds inserted norms, and how a norm is made for a site.

Norms are plain modules (`nn.BatchNorm1d` and its kin) under `<owner>.bn_lightning_norm.<n>`, so that
SyncBatchNorm conversion, checkpoints and other tools treat them like any other. A norm reduces over
every axis but the channels: `[N, C]` over N, `[N, C, L]` over N and L, `[N, C, H, W]` over N, H and W.
Where the channels are not on axis 1, as in `[B, T, C]`, the other axes are flattened into one: over B and T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import BatchSizeError
from bn_lightning.surgery.plan import NormFactory, Site


@dataclass(frozen=True)
class Slot:
    """Where one norm of a container acts.

    Args:
        site: Name of the site.
        channel_dim: Channel axis of the pre-activation, counted from the end.
        ndim: Number of axes that the norm expects.
        shared: Whether the activation module is called several times, so that the call must be told apart.
        owner: Path of the calling module.
        call_index: Number of the call there.
        after: Whether it acts on the output of the nonlinearity.
    """

    site: str
    channel_dim: int
    ndim: int
    shared: bool
    owner: str
    call_index: int
    after: bool


class InsertedNorms(nn.ModuleList):
    """The norms that hang under one module, each with the place where it acts."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[Slot] = []
        self.froze_bias = False

    def forward(self, x: Tensor) -> Tensor:
        """Hand `x` on: owners that run all their children in turn meet this container among them."""
        return x

    def add(self, norm: nn.Module, site: Site, *, after: bool) -> int:
        """Hold `norm` for `site`; its number in this container."""
        ndim = len(site.shape) if _on_axis_1(site) else 2
        shared = site.attach == "shared"
        self.slots.append(Slot(site.name, site.channel_dim, ndim, shared, site.owner, site.call_index, after))
        self.append(norm)
        return len(self) - 1

    def normalize(self, number: int, x: Tensor) -> Tensor:
        """Apply one of the norms along the channel axis of its site.

        Args:
            number: Which norm.
            x: A tensor with as many channels as the norm has, of any shape around them.

        Returns:
            A tensor of the same shape.

        Raises:
            BatchSizeError: If a batch norm in training mode receives a single value per channel.
        """
        # Not self[number], whose index arithmetic costs as much as a small norm's own Python code.
        slot, norm = self.slots[number], self._modules[str(number)]
        channels = x.shape[slot.channel_dim]
        if x.numel() == 0:  # as an expert that received no token: there is nothing to normalise
            return x
        if norm.training and x.numel() <= channels and isinstance(norm, _BatchNorm):
            raise BatchSizeError(
                f"The batch norm at {slot.site!r} received {x.numel() // channels} value per channel (shape "
                f"{tuple(x.shape)}), which has no variance. Train on batches of two samples or more, "
                "with drop_last=True in the DataLoader if only the last batch is that small."
            )
        if x.ndim == slot.ndim and x.ndim + slot.channel_dim == 1:
            return norm(x)
        moved = x.movedim(slot.channel_dim, -1)
        rows = moved.reshape(-1, channels, *[1] * (slot.ndim - 2))
        return norm(rows).reshape(moved.shape).movedim(-1, slot.channel_dim)


def make_norm(site: Site, norm: str | NormFactory, neighbour: Tensor | None) -> nn.Module:
    """Make the norm for a site, on the device and in the type of the neighbouring layer.

    Args:
        site: The site.
        norm: "batch", or a factory that makes a module for a number of channels.
        neighbour: A parameter of the neighbouring layer; None where there is none.

    Returns:
        The norm, in training mode.
    """
    if callable(norm):
        made = norm(site.channels)
    else:
        ndim = len(site.shape) if _on_axis_1(site) else 2
        kinds: dict[int, type[nn.Module]] = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        made = kinds.get(ndim, nn.BatchNorm1d)(site.channels)
    if neighbour is not None:
        made = made.to(device=neighbour.device, dtype=neighbour.dtype if neighbour.is_floating_point() else None)
    return made


def is_untouched(norm: nn.Module) -> bool:
    """Whether a batch norm is as it was made: no batch seen, scale one, shift zero.

    Args:
        norm: An inserted norm.

    Returns:
        False for norms of other kinds, whose first state is not known.
    """
    if not isinstance(norm, _BatchNorm):
        return False
    fresh = norm.num_batches_tracked is None or int(norm.num_batches_tracked) == 0
    scale = norm.weight is None or bool((norm.weight == torch.ones_like(norm.weight)).all())
    shift = norm.bias is None or bool((norm.bias == torch.zeros_like(norm.bias)).all())
    return fresh and scale and shift


def _on_axis_1(site: Site) -> bool:
    return len(site.shape) + site.channel_dim == 1
