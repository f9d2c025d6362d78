"""The paper's recipe as an arm of a study: what it changed becomes rows of the results."""

import warnings
from typing import TYPE_CHECKING

import pandas as pd

from bn_lightning.callbacks.recipe import ITEMS, BatchNormRecipe
from bn_lightning.errors import NoEffectWarning

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

COUNTED = tuple(item for item in ITEMS if item != "reduce_augmentation")  # that is a hook of the user's


class QuietRecipe(BatchNormRecipe):
    """A recipe that counts what it changed in place of warning of what it found nothing for.

    A study trains any module, and few have everything that the recipe removes: the same warning in every cell would say
    so, where a number in the results does. Functional dropout and local response norms, which it cannot
    remove, are warned of all the same.
    """

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Change the optimizers, and report without warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            super().on_train_start(trainer, pl_module)

    def table(self) -> pd.DataFrame:
        """How many things each item of the recipe changed.

        Returns:
            The columns step (0), layer (empty), quantity (`recipe_<item>`) and value.
        """
        changes = () if self.report is None else self.report.changes
        counts = [sum(change.item == item and not change.left for change in changes) for item in COUNTED]
        quantities = [f"recipe_{item}" for item in COUNTED]
        return pd.DataFrame({"step": 0, "layer": "", "quantity": quantities, "value": [float(n) for n in counts]})
