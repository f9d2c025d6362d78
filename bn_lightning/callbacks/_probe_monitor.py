"""What monitors that run probes in training share: when, on which batches, under which guard, and where rows go."""

import random
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._due_steps import DueSteps
from bn_lightning.callbacks._monitor_names import checked_name, names_among
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._tensorboard import is_tensorboard, layer_tags, log_folders, write_figures, write_scalars
from bn_lightning.callbacks._units import probe_batches
from bn_lightning.errors import StatisticsWarning
from bn_lightning.probes.measurements import MeasurementTable
from bn_lightning.probes.objective import LossFn
from bn_lightning.schedule import Schedule
from bn_lightning.surgery.sandbox import preserve_random_state

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class ProbeMonitor(CallbackBase):
    """Measures at due optimizer steps, and writes rows, scalars, a file and figures; the base of two monitors.

    Args:
        file: Name of the CSV file, without its ending.
        schedule: Which optimizer steps are due.
        loss_fn: ``loss_fn(module, batch)``; None for the module's ``training_step``.
        probe: A batch, or None for the first training batches.
        probe_size: Samples of the training data to probe with.
        warn: Whether to warn of gradients that cannot be compared.
        figures: Whether to draw at the end of fit, if there is a TensorBoardLogger.
        name: Tells several monitors of one class apart.

    Raises:
        ValueError: If the name does not fit into a tag, or the probe set is too small.
    """

    def __init__(
        self,
        file: str,
        schedule: Schedule,
        *,
        loss_fn: LossFn | None,
        probe: Any,
        probe_size: int,
        warn: bool,
        figures: bool,
        name: str,
    ) -> None:
        super().__init__()
        if probe_size < 2:
            raise ValueError(f"A probe set needs two samples or more, got probe_size={probe_size}.")
        self.schedule = schedule
        self.loss_fn = loss_fn
        self.probe = probe
        self.probe_size = probe_size
        self.warns = warn
        self.draws_figures = figures
        self.name = checked_name(name)
        self._file = file
        self._begin("")

    def _begin(self, name: str) -> None:
        """Forget the last fit."""
        self._called = name
        self._table = MeasurementTable()
        self._steps = DueSteps(self.schedule)
        self._warned: set[str] = set()

    def _takes_loss(self) -> bool:
        """Whether what is measured needs a loss."""
        return True

    def _figures(self, table: "pandas.DataFrame") -> "dict[str, Figure]":
        """Figures of one run by tag."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of batches and copies."""

    def table(self) -> "pandas.DataFrame":
        """What was measured in the last or the running fit.

        Returns:
            A DataFrame with the columns step, layer, quantity and value; quantities as above.
        """
        return self._table.frame()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse what cannot be measured."""
        self._begin(names_among(trainer, type(self))[self])
        if self._takes_loss() and self.loss_fn is None and not pl_module.automatic_optimization:
            raise misconfiguration(
                trainer,
                f"{type(self).__name__} cannot take the loss from training_step of {type(pl_module).__name__}, which "
                "optimizes manually. Pass loss_fn=lambda module, batch: ... and, with several optimizers, parameters=.",
            )

    def _probe_batches(self, trainer: "Trainer", pl_module: "LightningModule") -> list[Any]:
        """The probe set: the same samples in every run on the same data, whatever the run's seed."""
        with preserve_random_state():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 - the legacy global generator is what user code draws from
            random.seed(0)
            return probe_batches(trainer, pl_module, self.probe, self.probe_size)

    def _begins_due_step(self, trainer: "Trainer", batch_idx: int) -> bool:
        """Whether the coming batch begins a due optimizer step; a second micro-batch begins none."""
        if batch_idx == 0:
            self._steps.begin_epoch(trainer.current_epoch)
        return self._steps.begins(trainer.global_step)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Know that the step of the batch has begun."""
        self._steps.trained()

    def _guarded(self, trainer: "Trainer", pl_module: "LightningModule") -> ExitStack:
        """Within it, the module's steps leave no trace on metrics and loggers and compute in training's precision."""
        stack = ExitStack()
        for context in (
            no_trace(pl_module),
            trainer.precision_plugin.train_step_context(),
        ):
            stack.enter_context(context)
        return stack

    def _add(self, step: int, numbers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Add rows by layer, and give back the same numbers by tag."""
        scalars: dict[str, float] = {}
        for tag, (layer, values) in zip(layer_tags(tuple(numbers)), numbers.items(), strict=True):
            self._table.add(step, layer, values)
            scalars |= {f"{quantity}/{tag}": value for quantity, value in values.items()}
        return scalars

    def _write(self, trainer: "Trainer", scalars: Mapping[str, float], step: int) -> None:
        if trainer.is_global_zero:
            write_scalars(trainer.loggers, {self._tag(tag): value for tag, value in scalars.items()}, step)

    def _tag(self, tag: str) -> str:
        return f"{self._called}.{tag}" if self._called else tag

    def _warn_once(self, kind: str, message: str) -> None:
        if self.warns and kind not in self._warned:
            rank_zero_warn(message, category=StatisticsWarning)
            self._warned.add(kind)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write the file and the figures, and let go of batches and copies."""
        self._finish(trainer)
        table = self._table.frame()
        if self.draws_figures and trainer.is_global_zero and len(table) and any(map(is_tensorboard, trainer.loggers)):
            figures = {self._tag(tag): figure for tag, figure in self._figures(table).items()}
            write_figures(trainer.loggers, figures, trainer.global_step)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Keep what was measured, also on Ctrl-C."""
        self._finish(trainer)

    def _finish(self, trainer: "Trainer") -> None:
        self._release()
        if trainer.is_global_zero:
            name = f"{self._file}-{self._called}.csv" if self._called else f"{self._file}.csv"
            self._table.write_csv(log_folders(trainer.loggers), name)
