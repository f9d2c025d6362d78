"""Set the dropout of modules to 0 for as long as they are trained."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from bn_lightning.callbacks._recipe_report import RecipeChange, written

# Modules that drop inside one fused operation, with the probability in their attribute `dropout`.
_INSIDE = (nn.RNNBase, nn.MultiheadAttention)


def without_dropout(model: nn.Module, undo: Callable[[Callable[[], None]], object]) -> list[RecipeChange]:
    """Set the probability of every dropout module to 0, those of recurrent and attention modules included.

    Args:
        model: Its modules are changed in place: `p` of every kind of `nn.Dropout` and alpha dropout, `dropout` of
            `nn.RNN`, `nn.LSTM`, `nn.GRU` and `nn.MultiheadAttention`.
        undo: Is given, for each one, what gives it its probability back.

    Returns:
        One entry for each module that dropped anything.
    """
    changes = []
    for name, module in model.named_modules():
        attribute = "p" if isinstance(module, _DropoutNd) else "dropout" if isinstance(module, _INSIDE) else None
        if attribute is None or not (probability := getattr(module, attribute)):
            continue
        setattr(module, attribute, 0.0)
        undo(partial(setattr, module, attribute, probability))
        changes.append(RecipeChange("remove_dropout", name, f"{attribute}={written(probability)}", f"{attribute}=0"))
    return changes
