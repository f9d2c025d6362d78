"""A callback that takes the validation metrics of the training data too, for the gap between the two."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from bn_lightning.analysis.evaluation import evaluate_batches
from bn_lightning.analysis.factor_table import ON_TRAINING_SET
from bn_lightning.callbacks._compat import CallbackBase
from bn_lightning.callbacks._loader import training_batches

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class TrainingSetMetric(CallbackBase):
    """Runs `validation_step` on the training data after each validation of a fit.

    In evaluation mode: without dropout, and by the statistics that the validation used. Training does not notice.
    Training batches have to be of the form that `validation_step` takes. Gradients and weights are those of the
    moment, so a training loss and this differ also where nothing is dropped. `table()` gives, for each name that is
    logged, `training_set_<name>`.

    Args:
        num_batches: Training batches to use, at most; an epoch of them when None.
    """

    def __init__(self, *, num_batches: int | None = None) -> None:
        super().__init__()
        self.num_batches = num_batches
        self._rows: list[tuple[int, str, str, float]] = []

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Evaluate the training data by the weights of now."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        batches = training_batches(trainer, num_batches=self.num_batches)
        for name, value in evaluate_batches(trainer, pl_module, batches).items():
            self._rows.append((trainer.global_step, "", ON_TRAINING_SET + name, value))

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A run that was stopped early, because its weights are not finite, ends in NaN."""
        if trainer.global_step < trainer.max_steps:
            names = dict.fromkeys(quantity for _, _, quantity, _ in self._rows)
            self._rows += [(trainer.max_steps, "", quantity, math.nan) for quantity in names]

    def table(self) -> Any:
        """What was measured.

        Returns:
            The columns step, layer (empty), quantity and value.
        """
        return pd.DataFrame(self._rows, columns=["step", "layer", "quantity", "value"])
