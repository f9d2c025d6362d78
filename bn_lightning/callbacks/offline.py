"""Recalibrate a trained module in a Trainer's validation, by the training data of its data module."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from bn_lightning.callbacks._built import OnceBuilt
from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, namespace_of
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._training_forward import as_in_training, refuse_unusable_step
from bn_lightning.surgery.forward import Forward
from bn_lightning.surgery.sandbox import preserve_modes, preserve_random_state
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport


class LoadOnceBuilt(CallbackBase):
    """Loads weights into a module as soon as it has all its layers, wherever it builds them.

    Args:
        load: Called with the module once in every run of the Trainer, before the module goes to its device.

    Example:
        >>> callback = LoadOnceBuilt(lambda module: print(sorted(module.state_dict())))
        >>> # Trainer(callbacks=[callback]).validate(module, datamodule=data)
    """

    _waiting: OnceBuilt | None = None

    def __init__(self, load: Callable[["LightningModule"], None]) -> None:
        super().__init__()
        self._load = load

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Load now, or arrange for it when the module has built its layers."""
        self._waiting = OnceBuilt(trainer, pl_module, lambda: self._load(pl_module))
        self._waiting.arm()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave nothing on a module whose set-up failed."""
        if self._waiting is not None:
            self._waiting.restore()


class RecalibrateBeforeValidation(CallbackBase):
    """Gives every batch norm population statistics at the start of a ``Trainer.validate``.

    The module is on its device by then, and the batches of the data module's ``train_dataloader`` take the path of
    training: precision, transfer hooks, and ``training_step`` with logging muted and metrics restored. The order
    of a shuffling loader is that of seed 0, whatever the random state, which comes back.

    Args:
        forward: ``forward(module, batch)`` runs the module instead of its ``training_step``.
        **options: Further ones of `recalibrate_batch_norm`.

    Attributes:
        report: What was done; None before.

    Raises:
        MisconfigurationException: In validation, if ``training_step`` cannot be run for its forward alone.
        Exception: In validation, what `recalibrate_batch_norm` raises.

    Example:
        >>> callback = RecalibrateBeforeValidation(num_batches=200)
        >>> # Trainer(callbacks=[callback]).validate(module, datamodule=data)
    """

    def __init__(self, *, forward: Forward | None = None, **options: Any) -> None:
        super().__init__()
        self.report: RecalibrationReport | None = None
        self._forward = forward
        self._options = options

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Recalibrate, so that this validation sees population statistics."""
        if self._forward is None:
            refuse_unusable_step(trainer, pl_module, remedy='entry="forward" (--entry forward)')
        stage = trainer.state.stage
        try:
            # Transfer hooks and steps that augment in training ask the Trainer whether it trains.
            trainer.training = True
            with preserve_modes(pl_module), no_trace(pl_module), preserve_random_state():
                torch.manual_seed(0)
                # In validation all norms are in evaluation mode, and none counts as frozen.
                self.report = recalibrate_batch_norm(
                    pl_module,
                    _training_data(trainer),
                    forward=as_in_training(trainer, self._forward),
                    **self._options,
                )
        finally:
            trainer.state.stage = stage


def _training_data(trainer: "Trainer") -> Any:
    data_module: Any = trainer.datamodule  # type: ignore[attr-defined] # set by a connector
    loader = data_module.train_dataloader()
    # Lightning iterates whatever can be iterated; collections of loaders it combines.
    return _combined(trainer, loader) if isinstance(loader, list | tuple | dict) else _plain(loader)


def _plain(loader: Any) -> Any:
    return loader if isinstance(loader, DataLoader) else iter(loader)


def _combined(trainer: "Trainer", loaders: Any) -> Iterator[Any]:
    combined: Any = namespace_of(trainer).utilities.combined_loader.CombinedLoader
    for batch, _, _ in combined(loaders, "max_size_cycle"):
        yield batch
