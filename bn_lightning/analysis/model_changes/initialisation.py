"""Another initialisation in place of a model's own."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bn_lightning.analysis.model_changes.lsuv import scale_to_unit_variance
from bn_lightning.analysis.model_changes.model_change import ModelChange
from bn_lightning.analysis.names import unknown_name
from bn_lightning.callbacks._dry_run import idle_optimizers
from bn_lightning.callbacks._example import examples_of
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.probes.copied_batch import copied_batch
from bn_lightning.surgery.sandbox import sandbox

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

SCHEMES = ("gaussian", "kaiming", "orthogonal", "lsuv")


class Initialise(ModelChange):
    """Draws the weights of all linear and convolutional layers anew, and sets their biases to 0.

    - "gaussian": N(0, 0.01²), as AlexNet and CaffeNet.
    - "kaiming": normal with variance 2 / fan-in (He et al. 2015, section 2.2).
    - "orthogonal": rows or columns orthonormal (Saxe et al. 2014).
    - "lsuv": orthogonal, then each layer scaled until its output on the first training batch has variance 1
      (`scale_to_unit_variance`), without norms if this callback comes before the one that inserts them.

    The draws come from the seed of the run, so arms with one scheme start from the same weights. Other parameters,
    such as those of recurrent layers, embeddings and norms, stay as they are.

    Args:
        scheme: One of the four.

    Raises:
        UnknownNameError: If there is no such scheme.
        ValueError: During setup, if no layer can be drawn, one computes its weight from other parameters, or LSUV meets
            an output without variance.
        MisconfigurationException: During setup, if LSUV finds no training batch.

    Example:
        >>> Initialise("lsuv").scheme
        'lsuv'
    """

    def __init__(self, scheme: str) -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise unknown_name("initialisation", scheme, SCHEMES)
        self.scheme = scheme

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Draw every layer, and scale it if asked to."""
        layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | _ConvNd)}
        if not layers:
            raise ValueError(
                f"{type(module).__name__} has no linear layer and no convolution, so there is nothing to initialise."
            )
        computed = [name for name, layer in layers.items() if "weight" not in dict(layer.named_parameters())]
        if computed:
            raise ValueError(
                f"The weights of {', '.join(computed)} in {type(module).__name__} are computed from other parameters "
                "(weight or spectral norm), so they cannot be drawn. Leave the arm out."
            )
        for layer in layers.values():
            _draw(layer.weight, self.scheme)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.scheme == "lsuv":
            step = examples_of(trainer, module, entry="training_step")[0]

            def run() -> None:
                # All of it in every run: what idle optimizers protect includes the weights scaled in between.
                with sandbox(module), no_trace(module), idle_optimizers(module), torch.no_grad():
                    module.training_step(*copied_batch(step.args))

            scale_to_unit_variance(layers, run)


def _draw(weight: Tensor, scheme: str) -> None:
    if scheme == "gaussian":
        nn.init.normal_(weight, std=0.01)
    elif scheme == "kaiming":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    else:
        nn.init.orthogonal_(weight)
