"""Maxout: the larger of two linear pieces, in place of a fixed nonlinearity."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from bn_lightning.surgery.plan import Site

_SPLITTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Maxout(nn.Module):
    """The larger of the two halves of the channels, so half as many come out.

    A maximum of two tensors is no site of batch norm, so the module marks the place by a leaky ReLU of slope 1, which
    hands on what it gets: on both pieces together, where a norm `before` it acts on every piece as Ioffe & Szegedy
    would have it, or on the maximum, for a norm `after` it.

    Source: Goodfellow et al. 2013, section 3, with k = 2.

    Args:
        placement: Where a norm would go, "before" the maximum or "after" it.
        dim: Axis of the channels.

    Example:
        >>> Maxout()(torch.tensor([[1.0, -2.0, 0.5, 3.0]]))
        tensor([[1., 3.]])
    """

    def __init__(self, *, placement: Literal["before", "after"] = "before", dim: int = -1) -> None:
        super().__init__()
        self.placement = placement
        self.dim = dim

    def forward(self, pieces: Tensor) -> Tensor:
        """Maxima of `pieces`, whose channels are all first pieces and then all second ones."""
        pieces = _handed_on(pieces) if self.placement == "before" else pieces
        first, second = pieces.chunk(2, dim=self.dim)
        largest = torch.maximum(first, second)
        return _handed_on(largest) if self.placement == "after" else largest


def _handed_on(values: Tensor) -> Tensor:
    return F.leaky_relu(values, negative_slope=1.0)


def add_second_piece(model: nn.Module, sites: tuple[Site, ...]) -> None:
    """Double the outputs of the layers before an activation: behind a maxout as many are left as there were.

    The second piece starts as a shuffle of the first one's weights, so it is drawn from their distribution whatever
    that is; likewise the biases. The layers keep their width, so their parameters double.

    Args:
        model: Holds the layers; changed in place.
        sites: The sites of one activation module.

    Raises:
        ValueError: If another layer than a linear one or a convolution comes before it, or its output goes elsewhere
            too, or if the layers of one activation module have their channels on different axes.
    """
    if len({site.channel_dim for site in sites}) > 1:
        layers = ", ".join(repr(site.layer) for site in sites)
        raise ValueError(
            f"{sites[0].activation!r} serves the layers {layers}, whose channels lie on different axes, and one maxout "
            "takes its pieces along one. Give each layer a module of its own, or leave the maxout arms out (--arms)."
        )
    for site in sites:
        layer = model.get_submodule(site.layer) if site.attach == "producer" else None
        # Exact types: a parametrised layer, whose weight cannot be set, is of a class of its own.
        if layer is None or type(layer) not in _SPLITTABLE or getattr(layer, "groups", 1) != 1:
            raise ValueError(
                f"Maxout needs a linear layer or an ungrouped convolution that feeds {site.activation!r} and nothing "
                f"else, to give it a second piece; found was {type(layer).__name__ if layer else 'none'} "
                f"({site.layer!r}). Leave the arms with maxout out (--arms)."
            )
        for name in ("weight", "bias"):
            values = getattr(layer, name)
            if values is not None:
                first = values.detach()
                second = first.flatten()[torch.randperm(first.numel())].view_as(first)
                setattr(layer, name, nn.Parameter(torch.cat([first, second]), requires_grad=values.requires_grad))
        width = "out_channels" if isinstance(layer, _ConvNd) else "out_features"
        setattr(layer, width, 2 * getattr(layer, width))
