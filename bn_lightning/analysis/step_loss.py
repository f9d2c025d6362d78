"""A callback that keeps the training loss of every optimizer step."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bn_lightning.analysis.run_labels import STEP_LOSS
from bn_lightning.callbacks._compat import CallbackBase


class StepLoss(CallbackBase):
    """Keeps the loss of the last micro-batch of each optimizer step, without waiting for the device.

    A run that ends early, because its weights are no longer finite, ends in a NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses: list[tuple[int, Tensor]] = []
        self._ended_early = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append((trainer.global_step - 1, loss.detach()))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """See whether the run was stopped before its last step."""
        self._ended_early = trainer.global_step < trainer.max_steps

    def table(self) -> pd.DataFrame:
        """The losses.

        Returns:
            The columns step, layer (empty), quantity (`step_loss`) and value.
        """
        # Of the micro-batches of one step the last one counts.
        last = {step: loss for step, loss in self._losses if step >= 0}
        values = torch.stack([loss.double() for loss in last.values()]).tolist() if last else []
        steps = list(last)
        if self._ended_early and steps:
            steps.append(steps[-1] + 1)
            values.append(math.nan)
        return pd.DataFrame({"step": steps, "layer": "", "quantity": STEP_LOSS, "value": values})
