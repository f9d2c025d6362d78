"""Run modules over the test or validation data of a data module."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bn_lightning.analysis.interrupt import keyboard_interrupt_kept
from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.recorder import seed_all
from bn_lightning.analysis.training import quiet_lightning, recorded_warnings
from bn_lightning.surgery.sandbox import preserve_random_state

STAGES = {"test": "test", "val": "validate"}
SILENT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class SplitData:
    """The loader of one split, read anew for every module.

    The data module is set up once, for the stage of the split. Its transfer hooks are used, and so is the Trainer's
    precision and device. Each reading begins with the random state of seed 0, so that a loader that shuffles or
    augments by the global generators gives every module the same.

    Args:
        namespace: The Lightning package of the modules.
        data: The LightningDataModule; its `prepare_data`, `setup` and `predict_dataloader` are replaced on the
            instance.
        split: "test" or "val".

    Attributes:
        batches: How many there are; 0 where the loader does not know.

    Raises:
        UnknownNameError: If there is no such split.
        TypeError: If `data` is no LightningDataModule.
        ValueError: If it has no loader of this split, or several.
    """

    def __init__(self, namespace: Any, data: Any, split: str) -> None:
        if split not in STAGES:
            raise unknown_name("split", split, STAGES)
        if not hasattr(data, "prepare_data"):
            raise TypeError(
                f"The data come from a LightningDataModule, but data() made a {type(data).__qualname__}. Put its "
                f"loader into the {split}_dataloader of a LightningDataModule."
            )
        self._namespace = namespace
        self._data = data
        with _quietly():
            data.trainer = namespace.Trainer(devices=1, **SILENT)
            data.prepare_data()
            data.setup(STAGES[split])
            loader = _only_loader(data, split)
        self.batches = _length(loader)
        plain = _Plain(loader)
        # Predicting would set the data up for a stage of its own, and a split drawn there would be another.
        data.prepare_data = lambda: None
        data.setup = lambda stage=None: None
        data.predict_dataloader = lambda: plain

    def predict(self, module: Any, step: Callable[[Any, int], None], callbacks: list[Any]) -> None:
        """Give every batch to a function, with the module in evaluation mode, on its device and without gradients.

        Args:
            module: A LightningModule.
            step: Called with batch and its number in place of the module's `predict_step`.
            callbacks: Of the Trainer.
        """

        # A plain function: Lightning asks for its code.
        def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            step(batch, batch_idx)

        module.predict_step = predict_step
        with _quietly(), preserve_random_state():
            trainer = self._namespace.Trainer(devices=1, callbacks=callbacks, **SILENT)
            seed_all(0)
            trainer.predict(module, datamodule=self._data, return_predictions=False)


class _Plain:
    """A loader that Lightning does not take apart: to predict it builds every DataLoader again."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        # Lightning asks for an iterator it does not use; this one starts no worker and draws no number till it is.
        yield from self._loader


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set
        return 0


def _only_loader(data: Any, split: str) -> Any:
    method = getattr(type(data), f"{split}_dataloader")
    if method.__module__.startswith(("pytorch_lightning.", "lightning.")):
        raise ValueError(
            f"{type(data).__name__} has no {split}_dataloader, and the split {split!r} was asked for. Write one, or "
            f"name the other split: {' or '.join(name for name in STAGES if name != split)} (--split)."
        )
    loader = getattr(data, f"{split}_dataloader")()
    if not isinstance(loader, list | tuple | dict):
        return loader
    if len(loader) != 1:
        raise ValueError(
            f"{type(data).__name__}.{split}_dataloader gives {len(loader)} loaders, and an ensemble is evaluated on "
            "one. Give a data module that returns that one."
        )
    return next(iter(loader.values() if isinstance(loader, dict) else loader))


@contextmanager
def _quietly() -> Iterator[None]:
    with recorded_warnings() as caught, quiet_lightning(), keyboard_interrupt_kept():
        yield
    for warning in caught:
        # Lightning's own advice is about a training that does not take place.
        if warning.category.__module__.startswith("bn_lightning."):
            warnings.warn(warning.message, warning.category, stacklevel=3)
