"""A classifier of six classes so small that an ensemble of it trains in a blink."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.callbacks import BatchNormInsertion


class Classifier(pl.LightningModule):
    def __init__(self, classes: int = 6, width: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Images(pl.LightningDataModule):
    """Images of 4 × 4 whose class is in their brightness, 50 to train on, 31 to validate, 23 to test."""

    classes = 6

    def __init__(self, shuffle: bool = False) -> None:
        super().__init__()
        self.shuffle = shuffle

    def images(self, count: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(count)
        labels = torch.randint(self.classes, (count,), generator=generator)
        noise = torch.randn(count, 1, 4, 4, generator=generator)
        return TensorDataset(noise + labels.view(-1, 1, 1, 1), labels)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.images(50), batch_size=10, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.images(31), batch_size=8, shuffle=self.shuffle)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.images(23), batch_size=8, shuffle=self.shuffle)


def train_members(folder: Path, count: int = 3, *, norms: bool = True, module: type = Classifier) -> list[Path]:
    paths = []
    for seed in range(count):
        torch.manual_seed(seed)
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            callbacks=[BatchNormInsertion()] if norms else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module(), train_dataloaders=Images().train_dataloader())
        paths.append(folder / f"member_{seed}.ckpt")
        trainer.save_checkpoint(paths[-1])
    return paths
