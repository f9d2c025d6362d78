"""Initial weights as a multiple of the module's own."""

from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from bn_lightning.analysis.model_changes.model_change import ModelChange

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class ScaledInit(ModelChange):
    """Multiplies all weight matrices and kernels of a model once, before its training.

    Those are the parameters of two axes and more, frozen ones left out; biases, and the scales and shifts of norms,
    stay as they are. A weight that several layers share is multiplied once. Where a norm follows, its output does not
    change with the weights' scale, but the step size relative to them does (Ioffe & Szegedy 2015, section 3.3).

    Args:
        factor: What to multiply by, above 0.

    Raises:
        ValueError: If the factor is not above 0, or during setup, if a layer has no weights yet.

    Example:
        >>> ScaledInit(3.0).factor
        3.0
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not factor > 0:
            raise ValueError(f"Initial weights are multiplied by a number above 0, not by {factor}.")
        self.factor = factor

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Multiply in place."""
        for name, parameter in module.named_parameters():
            if is_lazy(parameter):
                raise ValueError(
                    f"{name} of {type(module).__name__} is lazy and has no weights to multiply by {self.factor:g} yet. "
                    "Give its layer the number of its inputs, or run a batch through the module in __init__."
                )
            if parameter.dim() > 1 and parameter.requires_grad:
                with torch.no_grad():
                    parameter.mul_(self.factor)
