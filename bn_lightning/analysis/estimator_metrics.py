"""A callback that evaluates one run by the population statistics of every estimator."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.analysis.evaluation import evaluate_batches, validation_batches
from bn_lightning.callbacks._compat import CallbackBase
from bn_lightning.callbacks._loader import training_batches
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._training_forward import as_in_training
from bn_lightning.errors import BatchSizeError, NonFiniteError
from bn_lightning.surgery.sandbox import preserve_modes
from bn_lightning.surgery.statistics.estimators import Estimator, check_estimator
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport
from bn_lightning.surgery.statistics.recent_batches import RecentBatchStatistics
from bn_lightning.surgery.statistics.running_statistics import statistics_of, write_statistics

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

ESTIMATORS: tuple[Estimator, ...] = ("pooled", "paper", "fixed_point", "ema", "last_batches")
LAST_BATCHES = 20
LAG_OF = "pooled"
"""The estimate that running averages are held against."""


class EstimatorMetrics(CallbackBase):
    """Repeats validations with recalibrated statistics, estimator by estimator, and leaves training as it is.

    The Trainer's own validation sees the running averages. Right after it, each estimator takes the statistics of
    training batches under the weights of now (see `recalibrate_batch_norm`), the validation data are read again,
    and the running averages come back: one training, several evaluations. `table()` gives, at every step measured,

    - `<name>_<estimator>` for each name that the module logs in validation;
    - of each norm, with the pooled estimate: `running_mean_lag`, how far the mean moved, the root mean square over
      channels in running standard deviations, and `running_variance_lag`, the mean over channels of the logarithm of
      new over running variance.

    Where an estimate is not finite or cannot be made (the run diverged, batches of one value a channel), the metric
    that arms are compared by is NaN. A model without batch norm gets no rows.

    Args:
        monitor: The metric that arms are compared by.
        estimators: Which ones.
        num_batches: Training batches to estimate from, at most; an epoch when None. "last_batches" takes the last 20.
        only_at_end: Measure at the last step only.

    Raises:
        UnknownNameError: If there is no such estimator.
    """

    def __init__(
        self,
        monitor: str,
        *,
        estimators: Sequence[Estimator] = ESTIMATORS,
        num_batches: int | None = None,
        only_at_end: bool = False,
    ) -> None:
        super().__init__()
        for estimator in estimators:
            check_estimator(estimator)
        self.monitor = monitor
        self.estimators = tuple(estimators)
        self.num_batches = num_batches
        self.only_at_end = only_at_end
        self._rows: list[tuple[int, str, str, float]] = []
        self._recent: RecentBatchStatistics | None = None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Begin to watch training's own batches, if there is a norm."""
        if any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            self._recent = RecentBatchStatistics(pl_module, num_batches=LAST_BATCHES)
            self._recent.__enter__()

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Forget what others ran between two batches."""
        if self._recent is not None:
            self._recent.forget_batch()

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the norms saw."""
        if self._recent is not None:
            self._recent.end_batch()

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Evaluate once an estimator."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._recent is None:
            return
        if self.only_at_end and trainer.global_step < trainer.max_steps:
            return
        running = statistics_of(pl_module)
        for estimator in self.estimators:
            try:
                report = self._estimate(trainer, pl_module, estimator)
                metrics = evaluate_batches(trainer, pl_module, validation_batches(trainer))
            except (BatchSizeError, NonFiniteError):
                self._keep(trainer.global_step, f"{self.monitor}_{estimator}", math.nan)
                continue
            finally:
                write_statistics(pl_module, running)
            for name, value in metrics.items():
                self._keep(trainer.global_step, f"{name}_{estimator}", value)
            if estimator == LAG_OF:
                for norm in report.layers:
                    self._keep(trainer.global_step, "running_mean_lag", norm.mean_drift, norm.layer)
                    self._keep(trainer.global_step, "running_variance_lag", norm.log_variance_ratio, norm.layer)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Stop watching; a run that was stopped early, because its weights are not finite, ends in NaN."""
        if self._recent is not None and trainer.global_step < trainer.max_steps:
            for estimator in self.estimators:
                self._keep(trainer.max_steps, f"{self.monitor}_{estimator}", math.nan)
        self._release()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Stop watching."""
        self._release()

    def table(self) -> pd.DataFrame:
        """What was measured.

        Returns:
            The columns step, layer (a norm's path, or empty), quantity and value.
        """
        return pd.DataFrame(self._rows, columns=["step", "layer", "quantity", "value"])

    def _keep(self, step: int, quantity: str, value: float, layer: str = "") -> None:
        self._rows.append((step, layer, quantity, value))

    def _release(self) -> None:
        if self._recent is not None:
            self._recent.__exit__(None, None, None)
            self._recent = None

    def _estimate(self, trainer: "Trainer", module: "LightningModule", estimator: Estimator) -> RecalibrationReport:
        if estimator == "last_batches":
            assert self._recent is not None  # noqa: S101 - there is a norm, or nothing is measured
            return self._recent.write()
        stage = trainer.state.stage
        try:
            # Transfer hooks and steps that augment in training ask the Trainer whether it trains.
            trainer.training = True
            with torch.inference_mode(False), preserve_modes(module), no_trace(module):
                return recalibrate_batch_norm(
                    module,
                    training_batches(trainer, num_batches=self.num_batches),
                    estimator=estimator,
                    forward=as_in_training(trainer, None),
                    # The running average lags in every training; how far is measured here.
                    warn_drift=None,
                )
        finally:
            trainer.state.stage = stage
