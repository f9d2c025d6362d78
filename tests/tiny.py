"""A problem so small that a cell trains in a blink, and studies on it."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.study import Arm, Budget, Problem, Study


class TinyNet(pl.LightningModule):
    def __init__(self, lr: float = 0.1, blow_up: bool = False, metric: str = "val_loss") -> None:
        super().__init__()
        self.lr, self.blow_up, self.metric = lr, blow_up, metric
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        return loss * math.inf if self.blow_up and self.global_step >= 6 else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log(self.metric, F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class TinyData(pl.LightningDataModule):
    def _loader(self, *, shuffle: bool) -> DataLoader:
        x = torch.linspace(-1, 1, 96).reshape(32, 3)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=8, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(shuffle=False)


class WeightsSeen(pl.Callback):
    """Keeps the weights before training and every batch, and draws from every generator in between."""

    def __init__(self, draws: int = 0) -> None:
        self.draws = draws
        self.seen: dict[str, list[Tensor]] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        torch.rand(self.draws)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen = {
            "weights": [p.detach().clone() for p in (pl_module.net[0].weight, pl_module.net[0].bias)],
            "batches": [],
        }

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen["batches"].append(batch[0].clone())


class Failing(pl.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise OSError("the disk is on fire")


def tiny_problem(**changes: Any) -> Problem:
    given: dict[str, Any] = {
        "name": "tiny",
        "module": TinyNet,
        "data": TinyData,
        "monitor": "val_loss",
        "mode": "min",
        "budget": Budget(max_steps=10, eval_every=5, seeds=2),
        "trainer_options": {"accelerator": "cpu"},
    }
    return Problem(**{**given, **changes})


def tiny_study(*arms: Arm, **changes: Any) -> Study:
    chosen = arms or (Arm(name="slow", options={"lr": 0.01}), Arm(name="quick", options={"lr": 0.2}))
    given = {"name": "rates", "question": "Which rate?", "reference": chosen[0].name, "problem": tiny_problem()}
    return Study(arms=chosen, **{**given, **changes})


def modified(folder: Path) -> dict[str, int]:
    """When each cell was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.glob("*/*/cell.json"))}
