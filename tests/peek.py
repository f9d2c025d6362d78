"""Train one arm and look at the module, the data module and the Trainer at the first training step and at the end."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from bn_lightning.analysis.study import Arm, Problem
from bn_lightning.analysis.training import Training, train


class Peek(pl.Callback):
    """Copies the module's weights at the start, keeps sizes of batches, rates and the objects themselves."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.starting: dict[str, Any] = {}
        self.rates: list[float] = []
        self.first: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.starting = copy.deepcopy(pl_module.state_dict())
        groups = trainer.optimizers[0].param_groups
        self.rates, self.decays = ([group[name] for group in groups] for name in ("lr", "weight_decay"))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.append(len(batch[0]))
        self.first = self.first or [batch[0].clone()]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.module, self.data = pl_module, trainer.datamodule
        self.ending = copy.deepcopy(pl_module.state_dict())


def peek(problem: Problem, arm: Arm, folder: Path, *, seed: int = 0) -> tuple[Peek, Training]:
    """Train one cell; what was seen, and what was recorded."""
    seen = Peek()
    watched = dataclasses.replace(arm, callbacks=lambda: [*arm.callbacks(), seen])
    return seen, train(problem, watched, seed=seed, folder=folder / "arm" / f"seed_{seed}")


def recorded(training: Training, quantity: str, layer: str = "") -> dict[int, float]:
    """Values by step."""
    return {step: value for step, of, name, value in training.rows if (name, of) == (quantity, layer)}
