"""The callback that keeps a run's curve: validation metrics, training loss and time at every evaluation."""

import math
import random
import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.study import RECORDED
from bn_lightning.analysis.training_loss import training_loss
from bn_lightning.callbacks._compat import CallbackBase
from bn_lightning.errors import NoEffectWarning


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

    A metric that the module logs under one of these two names is left out, with a warning.

    It seeds the global generators again before the data are first drawn from, so what a callback drew while the model
    was set up cannot change the order of the data. It stops a run whose weights are no longer finite: a prediction
    made from NaN is none, so the validation metrics become NaN there and at the last step. The last step is always
    evaluated, wherever Lightning's own count of batches between evaluations ends.

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
        """Keep the loss, without waiting for the device, and have the last step evaluated."""
        loss = training_loss(trainer, pl_module, outputs)
        if loss is not None:
            self._losses.append(loss)
        if trainer.global_step >= self.max_steps:
            # Evaluations are spaced by batches, and with several optimizers, or an epoch that ends amid an
            # accumulation, fewer batches make the steps of the budget. Before it stops, Lightning evaluates.
            trainer.should_stop = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        if self._since is not None:
            self._seconds += perf_counter() - self._since
            self._since = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record one point of the curve."""
        step = 0 if trainer.sanity_checking else trainer.global_step
        if self.rows and self.rows[-1][0] == step:
            return  # a module that steps every few batches by hand is evaluated more often than it steps
        metrics = {name: float(value) for name, value in _logged(trainer).items() if value.numel() == 1}
        if self.monitor not in metrics:
            raise unknown_name("logged validation metric", self.monitor, metrics)
        for name in RECORDED:
            if metrics.pop(name, None) is not None:
                warnings.warn(
                    f"A study records {name!r} itself, so what the module logs under that name is left out. Log it "
                    "under another name to keep it.",
                    NoEffectWarning,
                    stacklevel=2,
                )
        finite = all(bool(torch.isfinite(weights).all()) for weights in pl_module.parameters())
        # Processes that shard the weights see a part each, and must stop together.
        if step and not trainer.strategy.reduce_boolean_decision(finite):
            metrics = dict.fromkeys(metrics, math.nan)
            self.diverged_at = step
            trainer.should_stop = True
        self._keep(step, metrics)
        if self.diverged_at is not None and step < self.max_steps:
            self._keep(self.max_steps, dict.fromkeys(metrics, math.nan))

    def check_last_step(self, trainer: Any) -> None:
        """See, after the fit, that the curve ends where the budget does.

        Args:
            trainer: The Trainer of the fit.

        Raises:
            RuntimeError: If a run that did not diverge was not evaluated at its last step: an earlier value would
                count as final.
        """
        evaluated = list(dict.fromkeys(step for step, _, name, _ in self.rows if name == self.monitor))
        if self.diverged_at is not None or (evaluated and evaluated[-1] >= self.max_steps):
            return
        ended = trainer.global_step
        if ended < self.max_steps:
            stopping = [type(callback).__name__ for callback in trainer.callbacks if _stops_early(callback)]
            by = f" by {' and '.join(stopping)}" if stopping else ""
            reason = (
                f"training was ended early{by}, after step {ended:,}. Arms are compared after equal numbers of steps: "
                "leave out what ends a fit (a callback, given or from the module's configure_callbacks, or "
                "trainer_options such as max_epochs and max_time), or give as many max_steps (--max-steps) as every "
                "run takes"
            )
        else:
            reason = (
                f"training went on to step {ended:,} without an evaluation there. Leave out trainer_options that space "
                "evaluations (check_val_every_n_epoch, val_check_interval, min_epochs), and let all optimizers step "
                "in training_step: each one's steps count"
            )
        steps = ", ".join(f"{step:,}" for step in evaluated) or "none"
        raise RuntimeError(
            f"{self.monitor!r} was not evaluated at the last of {self.max_steps:,} optimizer steps (steps evaluated: "
            f"{steps}), because {reason}."
        )

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        values = dict(metrics)
        if self._losses:
            values["training_loss"] = float(torch.stack(self._losses).double().mean())
        values["training_seconds"] = self._seconds
        self.rows += [(step, "", name, value) for name, value in values.items()]
        self._losses.clear()


def _logged(trainer: Any) -> dict[str, Tensor]:
    metrics = dict(trainer.callback_metrics)
    loaders = len(trainer.num_sanity_val_batches)
    if trainer.sanity_checking and loaders > 1:
        # Only here Lightning does not gather what each of several loaders gave.
        results = trainer._results
        for place in range(loaders):
            results.dataloader_idx = place
            metrics.update(trainer.callback_metrics)
        results.dataloader_idx = None
    return metrics


def _stops_early(callback: Any) -> bool:
    return not {"EarlyStopping", "Timer"}.isdisjoint(kind.__name__ for kind in type(callback).__mro__)
