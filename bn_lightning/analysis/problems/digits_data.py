"""Handwritten digits: the 8 × 8 set that scikit-learn embeds, or binarized MNIST from a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.problems.mnist_file import read_mnist

SPLIT_SEED = 20150211  # fixed: every cell of every study sees the same three sets


@dataclass(frozen=True)
class LabelledImages:
    """Images as rows in [0, 1], with their digits.

    Args:
        images: `[n, pixels]`, float32.
        digits: `[n]`, int64.
    """

    images: Tensor
    digits: Tensor

    def take(self, index: np.ndarray) -> "LabelledImages":
        """Those at the positions `index`."""
        chosen = torch.as_tensor(index)
        return LabelledImages(self.images[chosen], self.digits[chosen])


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """A data set that is indexed a whole batch at a time, which is 20 times as fast as sample by sample."""

    def __init__(self, data: LabelledImages) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.images[index], self.data.digits[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices)
        return self.data.images[chosen], self.data.digits[chosen]


def _as_it_is(batch: Any) -> Any:
    return batch


class DigitsData(pl.LightningDataModule):
    """Digits split into a training, a validation and a test set.

    The embedded set has 1,797 images of 8 × 8 pixels, scaled to [0, 1]; a stratified fifth of them is the test set.
    MNIST has 60,000 + 10,000 images of 28 × 28, each pixel 1 where it is above 127, else 0, as in the paper. A
    stratified tenth of the training images is the validation set, for tuning alone; the splits never change.

    Source: Ioffe & Szegedy 2015, section 4.1.

    Args:
        data_dir: Folder with `mnist.npz` (arrays x_train, y_train, x_test and y_test, uint8), downloaded into it if it
            is not there; None for the embedded digits.
        evaluate: Which set the validation loop reads: "test" for curves, "validation" for tuning.
        batch_size: Images per training batch; a short last batch is dropped.

    Raises:
        UnknownNameError: If there is no such set.
        RunFolderError: In prepare_data, if the file cannot be read or downloaded.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        evaluate: Literal["test", "validation"] = "test",
        batch_size: int = 60,
    ) -> None:
        super().__init__()
        if evaluate not in ("test", "validation"):
            raise unknown_name("set to evaluate on", evaluate, ["test", "validation"])
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.evaluate = evaluate
        self.batch_size = batch_size
        self.sets: dict[str, LabelledImages] = {}
        self._read: tuple[LabelledImages, LabelledImages] | None = None

    def prepare_data(self) -> None:
        """Download MNIST if it was asked for and is not there, and see that it can be read."""
        if not self.sets:
            self._read = self._read_images()

    def _read_images(self) -> tuple[LabelledImages, LabelledImages]:
        return _embedded_digits() if self.data_dir is None else _mnist(self.data_dir)

    def setup(self, stage: str | None = None) -> None:
        """Read the images once."""
        if not self.sets:
            # Lightning calls prepare_data in one process of several.
            training, test = self._read or self._read_images()
            self._read = None
            kept, held_out = _stratified(training.digits.numpy(), 0.1)
            self.sets = {"train": training.take(kept), "validation": training.take(held_out), "test": test}

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set; the order comes from torch's global generator."""
        return self._loader("train", batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The set that is evaluated on, in large batches."""
        return self._loader(self.evaluate, batch_size=2500)

    def test_dataloader(self) -> DataLoader:
        """The test set, in large batches."""
        return self._loader("test", batch_size=2500)

    def _loader(self, name: str, **options: Any) -> DataLoader:
        return DataLoader(_Batches(self.sets[name]), collate_fn=_as_it_is, **options)


def _embedded_digits() -> tuple[LabelledImages, LabelledImages]:
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    rows = torch.from_numpy(images / 16).float()
    everything = LabelledImages(rows, torch.from_numpy(digits).long())
    training, test = _stratified(digits, 0.2)
    return everything.take(training), everything.take(test)


def _mnist(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    arrays = read_mnist(folder)
    sets = []
    for name in ("train", "test"):
        images, digits = arrays[f"x_{name}"], arrays[f"y_{name}"]
        binary = torch.from_numpy(images.reshape(len(images), -1) > 127).float()
        sets.append(LabelledImages(binary, torch.from_numpy(digits.astype(np.int64))))
    return sets[0], sets[1]


def _stratified(digits: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of what is kept and of what is held out, each digit in its share."""
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(np.arange(len(digits)), test_size=share, stratify=digits, random_state=SPLIT_SEED)
    return np.sort(kept), np.sort(held_out)
