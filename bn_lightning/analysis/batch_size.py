"""An arm's batch size, in place of that of the user's data."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from bn_lightning.analysis.loader_settings import loader_settings
from bn_lightning.callbacks._compat import CallbackBase, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._learning_rate import scale_learning_rates
from bn_lightning.errors import NoEffectWarning

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class BatchSize(CallbackBase):
    """Lets the training loader of a data module yield batches of another size, and scales the learning rate alike.

    The loader is built anew over the same data set, sampler and collate function, so a seed means the same order of
    the samples at every size; what else it has of its own (workers, pinned memory, generator) is kept. Evaluation is
    left alone. The learning rates are multiplied by new size / own size (Goyal et al. 2017, section 2.1, the linear
    scaling rule). A size above that of the data set becomes that of the data set, with a warning. A last batch
    of one sample is dropped: it has no variance.

    `table()` gives `batch_size` and `learning_rate_factor` as they came out, at step 0.

    Args:
        size: Samples per training batch, at least 1.
        scale_rate: Whether to scale the learning rates.

    Raises:
        ValueError: If the size is not positive.
        MisconfigurationException: During fit, if the training data do not come from a data module as a single
            DataLoader that batches by number.
    """

    def __init__(self, size: int, *, scale_rate: bool = True) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"A batch holds at least 1 sample, not {size}.")
        self.size = size
        self.scale_rate = scale_rate
        self._sizes: tuple[int, int] | None = None  # own and new
        self._restore: Callable[[], None] | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Replace the data module's `train_dataloader` on the instance."""
        if stage != "fit":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined] # set by a connector
        if data is None:
            raise misconfiguration(trainer, self._refusal("they do not come from a LightningDataModule"))
        attributes, original = vars(data), data.train_dataloader
        replaced = attributes.get("train_dataloader")

        def train_dataloader() -> DataLoader:
            loader, own = self._resized(trainer, original())
            self._sizes = own, int(loader.batch_size or 0)
            return loader

        def restore() -> None:
            attributes.pop("train_dataloader", None)
            if replaced is not None:
                attributes["train_dataloader"] = replaced

        attributes["train_dataloader"], self._restore = train_dataloader, restore

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Scale the rates, now that the data's own size is known; a checkpoint would bring scaled ones."""
        if self._sizes is None or trainer.ckpt_path is not None:
            return
        own, new = self._sizes
        if new != self.size:
            rank_zero_warn(
                f"A batch size of {self.size} was asked for, and the training data hold {new} samples: batches of all "
                "of them are used.",
                category=NoEffectWarning,
            )
        if self.scale_rate:
            scale_learning_rates(trainer, new / own)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Give the data module its own loader back."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Give the data module its own loader back."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    def table(self) -> pd.DataFrame:
        """What came out.

        Returns:
            The columns step (0), layer (empty), quantity and value.
        """
        rows = []
        if self._sizes is not None:
            own, new = self._sizes
            factor = new / own if self.scale_rate else 1.0
            rows = [(0, "", "batch_size", float(new)), (0, "", "learning_rate_factor", factor)]
        return pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])

    def _resized(self, trainer: "Trainer", loader: Any) -> tuple[DataLoader, int]:
        """The loader of the size asked for, and the size of the given one."""
        if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
            raise misconfiguration(
                trainer, self._refusal(f"train_dataloader returned a {type(loader).__name__}, not one DataLoader")
            )
        options = {**loader_settings(loader), "generator": loader.generator, "drop_last": loader.drop_last}
        if isinstance(loader.dataset, IterableDataset):
            if loader.batch_size is None:
                raise misconfiguration(trainer, self._refusal("its iterable data set makes the batches itself"))
            return DataLoader(loader.dataset, batch_size=self.size, **options), loader.batch_size
        batches = loader.batch_sampler
        if type(batches) is not BatchSampler:
            kind = "none" if batches is None else f"a {type(batches).__name__}"
            raise misconfiguration(trainer, self._refusal(f"its loader's batch sampler is {kind}, not BatchSampler"))
        samples = len(batches.sampler)  # type: ignore[arg-type] # those of map-style data sets have a length
        size = min(self.size, samples)
        options["drop_last"] = batches.drop_last or samples % size == 1
        return DataLoader(loader.dataset, batch_size=size, sampler=batches.sampler, **options), batches.batch_size

    def _refusal(self, reason: str) -> str:
        return (
            f"The training data cannot be given a batch size of {self.size}: {reason}. Give data whose "
            "train_dataloader returns DataLoader(dataset, batch_size=...)."
        )
