"""Another nonlinearity in place of a model's own."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import nn

from bn_lightning.analysis.model_changes.hidden_activations import hidden_activations, replace_module
from bn_lightning.analysis.model_changes.maxout import Maxout, add_second_piece
from bn_lightning.analysis.model_changes.model_change import ModelChange
from bn_lightning.analysis.names import unknown_name
from bn_lightning.surgery.forward import device_of

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "rrelu": nn.RReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, negative_slope=1 / 3),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "maxout": Maxout,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    # Of slope 1 it hands on what it gets, to the bit, and is still a place that insertion finds.
    "none": functools.partial(nn.LeakyReLU, negative_slope=1.0),
}
"""Makers of the nonlinearities. The leaky ReLU is the very leaky one of caffenet-benchmark, slope 1/3; the PReLU has
one slope for all channels; "none" is linear."""


class SwapActivations(ModelChange):
    """Puts another nonlinearity between the layers of a model, before norms are planned and optimizers configured.

    Which are swapped is told by `hidden_activations`: not output heads and gates. Paths stay, but for maxout
    (`add_second_piece`) no weight changes. A randomised ReLU draws from the generator that orders the data, so from the
    second epoch on its run sees another order than its twins.

    Args:
        activation: A name of `ACTIVATIONS`.
        placement: Where norms will go, which maxout has to know; for the others it makes no difference.

    Raises:
        UnknownNameError: If there is no such nonlinearity.
        ValueError: During setup, if nonlinearities are functions in a forward, or maxout finds no layer to double.
        NoSiteError: During setup, if the model has none between its layers.

    Example:
        >>> SwapActivations("gelu").activation
        'gelu'
    """

    def __init__(self, activation: str, *, placement: Literal["before", "after"] = "before") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.placement = placement

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Swap every nonlinearity between layers."""
        device = device_of(module)
        for path, sites in hidden_activations(trainer, module, to="be swapped").items():
            if self.activation == "maxout":
                add_second_piece(module, sites)
                new: nn.Module = Maxout(placement=self.placement, dim=sites[0].channel_dim)
            else:
                new = ACTIVATIONS[self.activation]()
            replace_module(module, module.get_submodule(path), new.to(device))
