"""CIFAR-10 as a LightningDataModule: images whole in memory, without augmentation."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.problems.cifar_file import read_cifar

HELD_OUT = 10  # every tenth training image is for validation


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and classes, indexed a whole batch at a time."""

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.classes[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices)
        return self.images[chosen], self.classes[chosen]


def _as_it_is(batch: Any) -> Any:
    return batch


class CifarData(pl.LightningDataModule):
    """Images of 3 × 32 × 32, each channel with mean 0 and variance 1 over the training images; no augmentation.

    Every tenth image of each class is held out of the training images for tuning; the splits never change.

    Source: Krizhevsky 2009; Santurkar et al. (2018), appendix, train without augmentation and with batches of 128.

    Args:
        data_dir: Folder with `cifar10.npz` or `cifar10_small.npz`.
        evaluate: Which set the validation loop reads: "test" for curves, "validation" for tuning.
        batch_size: Images per training batch; a short last batch is dropped.

    Raises:
        UnknownNameError: If there is no such set.
        RunFolderError: In setup, if the file cannot be read.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        evaluate: Literal["test", "validation"] = "test",
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        if evaluate not in ("test", "validation"):
            raise unknown_name("set to evaluate on", evaluate, ["test", "validation"])
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.evaluate = evaluate
        self.batch_size = batch_size
        self.sets: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the images once."""
        if self.sets:
            return
        arrays = read_cifar(self.data_dir)
        held_out = _every_tenth(arrays["y_train"])
        scale = arrays["x_train"][~held_out].mean((0, 1, 2)), arrays["x_train"][~held_out].std((0, 1, 2))
        parts = {
            "train": (arrays["x_train"][~held_out], arrays["y_train"][~held_out]),
            "validation": (arrays["x_train"][held_out], arrays["y_train"][held_out]),
            "test": (arrays["x_test"], arrays["y_test"]),
        }
        self.sets = {name: _tensors(images, classes, *scale) for name, (images, classes) in parts.items()}

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set; the order comes from torch's global generator."""
        return self._loader("train", batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The set that is evaluated on."""
        return self._loader(self.evaluate, batch_size=500)

    def test_dataloader(self) -> DataLoader:
        """The test set."""
        return self._loader("test", batch_size=500)

    def _loader(self, name: str, **options: Any) -> DataLoader:
        return DataLoader(_Images(*self.sets[name]), collate_fn=_as_it_is, **options)


def _every_tenth(classes: np.ndarray) -> np.ndarray:
    """Which images are every tenth of their class, in the order of the file."""
    chosen = np.zeros(len(classes), dtype=bool)
    for kind in np.unique(classes):
        chosen[np.flatnonzero(classes == kind)[HELD_OUT - 1 :: HELD_OUT]] = True
    return chosen


def _tensors(images: np.ndarray, classes: np.ndarray, mean: np.ndarray, std: np.ndarray) -> tuple[Tensor, Tensor]:
    scaled = (images.astype(np.float32) - mean.astype(np.float32)) / np.maximum(std, 1e-6).astype(np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes.astype(np.int64))
