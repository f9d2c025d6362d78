"""How much a model drops while it is trained."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from bn_lightning.analysis.model_changes.hidden_activations import hidden_activations, replace_module
from bn_lightning.analysis.model_changes.model_change import ModelChange

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class SetDropout(ModelChange):
    """Sets the probability of a model's dropout, and gives dropout to a model that has none.

    Every dropout module gets the probability, also one that had 0. Where there is none, one comes behind each
    nonlinearity between layers: that becomes `Sequential(activation, dropout)`, so that a norm inserted `after` the
    nonlinearity stands between the two. What recurrent and attention layers drop within stays as it is.

    Dropout draws from the generator that orders the data, so from the second epoch on runs with and without it see
    different orders.

    Args:
        p: Probability of dropping a value, at least 0 and below 1.

    Raises:
        ValueError: If the probability is none, or during setup, if a model without dropout calls nonlinearities as
            functions in a forward.
        NoSiteError: During setup, if it has no nonlinearity between its layers.

    Example:
        >>> SetDropout(0.2).p
        0.2
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"The probability of dropout is at least 0 and below 1, not {p}.")
        self.p = p

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Set what is there; insert what is not."""
        present = [part for part in module.modules() if isinstance(part, _DropoutNd)]
        for part in present:
            part.p = self.p
        if present or not self.p:
            return
        for path in hidden_activations(trainer, module, to="be followed by dropout"):
            activation = module.get_submodule(path)
            followed = nn.Sequential(OrderedDict(activation=activation, dropout=nn.Dropout(self.p)))
            replace_module(module, activation, followed)
