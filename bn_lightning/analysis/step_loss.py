"""A callback that keeps the training loss of every optimizer step."""

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bn_lightning.analysis.run_labels import STEP_LOSS
from bn_lightning.analysis.training_loss import training_loss
from bn_lightning.callbacks._compat import CallbackBase


class StepLoss(CallbackBase):
    """Keeps the loss of each optimizer step, without waiting for the device.

    Of an accumulated gradient it is the loss of the last micro-batch, the one after which the optimizer steps, and not
    divided by their number. Where several optimizers step in one batch, the batch's loss stands at the last of these
    steps. A run that ends early, because its weights are no longer finite, ends in a NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses: list[tuple[int, Tensor]] = []
        self._steps_taken = 0
        self._ended_early = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See how many steps were taken before, as in a run that is resumed."""
        self._steps_taken = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss of a batch that a step was taken in."""
        loss = training_loss(trainer, pl_module, outputs)
        if loss is not None and trainer.global_step > self._steps_taken:
            self._losses.append((trainer.global_step - 1, loss))
        self._steps_taken = trainer.global_step

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """See whether the run was stopped before its last step."""
        self._ended_early = trainer.global_step < trainer.max_steps

    def table(self) -> pd.DataFrame:
        """The losses.

        Returns:
            The columns step, layer (empty), quantity (`step_loss`) and value.
        """
        steps = [step for step, _ in self._losses]
        values = torch.stack([loss.double() for _, loss in self._losses]).tolist() if self._losses else []
        if self._ended_early and steps:
            steps.append(steps[-1] + 1)
            values.append(math.nan)
        return pd.DataFrame({"step": steps, "layer": "", "quantity": STEP_LOSS, "value": values})
