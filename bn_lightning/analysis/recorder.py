"""The callback that keeps a run's curve: validation metrics, training loss and time at every evaluation."""

import math
import random
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bn_lightning.analysis.names import unknown_name
from bn_lightning.callbacks._compat import CallbackBase


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the legacy global generator is what users' data sets draw from
    torch.manual_seed(seed)


class CurveRecorder(CallbackBase):
    """Keeps what a study compares, and keeps arms with one seed twins.

    Put it before all other callbacks. At every validation, and at the one before training (Lightning's sanity check,
    recorded as step 0), it records each scalar that the module logged, under its own name, and

    - `training_loss`: mean loss over the steps since the last evaluation,
    - `training_seconds`: wall-clock time spent in training steps so far. Evaluations, and what callbacks do around
      them, such as recalibration, are left out.

    It seeds the global generators again before the data are first drawn from, so what a callback drew while the model
    was set up cannot change the order of the data. It stops a run whose weights are no longer finite: a prediction
    made from NaN is none, so the validation metrics become NaN there and at the last step.

    Args:
        seed: Seed of the run.
        monitor: Metric that must be among those the module logs.
        max_steps: Last optimizer step of the run.
    """

    def __init__(self, *, seed: int, monitor: str, max_steps: int) -> None:
        self.seed = seed
        self.monitor = monitor
        self.max_steps = max_steps
        self.rows: list[tuple[int, str, str, float]] = []
        self.diverged_at: int | None = None
        self._losses: list[Tensor] = []
        self._seconds = 0.0
        self._since: float | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Seed before layers that the module builds late."""
        seed_all(self.seed)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Seed before the loaders' workers start, and check that there is something to record."""
        if not trainer.enable_validation:
            raise ValueError(
                f"Arms are compared by the validation metric {self.monitor!r}, but {type(pl_module).__name__} is not "
                "validated: it needs a validation_step, and its data a val_dataloader."
            )
        seed_all(self.seed)

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Seed after the evaluation before training."""
        seed_all(self.seed)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let the clock go on after an evaluation."""
        if self._since is None:
            self._since = perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss, without waiting for the device."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        if self._since is not None:
            self._seconds += perf_counter() - self._since
            self._since = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record one point of the curve."""
        step = 0 if trainer.sanity_checking else trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        if self.monitor not in metrics:
            raise unknown_name("logged validation metric", self.monitor, metrics)
        finite = all(bool(torch.isfinite(weights).all()) for weights in pl_module.parameters())
        # Processes that shard the weights see a part each, and must stop together.
        if step and not trainer.strategy.reduce_boolean_decision(finite):
            metrics = dict.fromkeys(metrics, math.nan)
            self.diverged_at = step
            trainer.should_stop = True
        self._keep(step, metrics)
        if self.diverged_at is not None and step < self.max_steps:
            self._keep(self.max_steps, dict.fromkeys(metrics, math.nan))

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        values = dict(metrics)
        if self._losses:
            values["training_loss"] = float(torch.stack(self._losses).double().mean())
        values["training_seconds"] = self._seconds
        self.rows += [(step, "", name, value) for name, value in values.items()]
        self._losses.clear()
