"""Population statistics in the validation metric and in the checkpoints of a training run."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.callbacks._averaging import averaged_weights, stochastic_averaging_of, weight_averaging_of
from bn_lightning.callbacks._compat import (
    CallbackBase,
    LightningModule,
    Trainer,
    misconfiguration,
    rank_zero_info,
    rank_zero_warn,
)
from bn_lightning.callbacks._kept_average import KeptAverage
from bn_lightning.callbacks._loader import training_batches
from bn_lightning.callbacks._mark import mark_checkpoints, unmark_checkpoints
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._training_forward import as_in_training, refuse_unusable_step
from bn_lightning.errors import BatchSizeError, NoEffectWarning, NonFiniteError, NoNormError, StatisticsWarning
from bn_lightning.surgery.forward import Forward
from bn_lightning.surgery.sandbox import preserve_modes
from bn_lightning.surgery.statistics.estimators import Estimator, check_estimator, check_regroup
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport
from bn_lightning.surgery.statistics.recent_batches import RecentBatchStatistics

Batches = Iterable[Any] | Callable[[], Iterable[Any]]

SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}
LAST_BATCHES = 20


class BatchNormRecalibration(CallbackBase):
    """Gives every batch norm population statistics before each validation of a fit.

    The running statistics of training lag behind the weights and weigh the last batches most. This callback
    replaces them by the statistics of training batches under the weights as they are, in
    ``on_validation_start`` (never in the sanity check), or in ``on_train_epoch_end`` if there is no validation
    loop. So the validation metric and every checkpoint saved after it, before the next training batch,
    carry them. Before the next training batch the running average is put back: training runs as it would without
    the callback, to the bit. If the weights moved since, the end of training recalibrates once more, and the
    model keeps population statistics.

    The training data is read again, by a loader of our own without workers; the batches take the path of
    training and run through ``training_step`` with ``log`` and ``log_dict`` muted, torchmetrics and random state
    restored, without gradients, everything but the norms in evaluation mode. What else ``training_step``
    changes (counters, writes to a logger's experiment) is its own; `forward` avoids that. Ranks each
    read their share, and all get the statistics of all shares.

    Every checkpoint saved during the fit says what it carries: ``checkpoint["bn_lightning_statistics"]`` is a dict
    of ``kind`` (``"population"`` or, when saved between validations, ``"running"``), ``estimator`` and
    ``global_step``. With
    population statistics in the weights, the running average travels in this callback's state, so a resumed run
    goes on from it.

    With Lightning's ``WeightAveraging`` (EMA too), in any order, the averaged weights are the ones that are
    recalibrated: before each validation of them, at the end of an epoch without validation, and at the end. Their
    checkpoints carry the statistics, and the running average of the weights of training is never touched. With
    ``StochasticWeightAveraging``, which has to come first, validations are of the weights of training until its last
    epoch, and the average that it leaves in the module is recalibrated at the end.

    A `NonFiniteError` (a run that has diverged) is a warning here, and the running statistics stay; so is a
    `BatchSizeError` (norms that receive single values in every batch), for which `regroup` is the way out.

    Source: Ioffe & Szegedy (2015), Algorithm 2.

    Args:
        estimator: See `recalibrate_batch_norm`. ``"last_batches"`` reads the norms' inputs during training, and runs
            nothing of its own: no `forward`, no `batches`.
        num_batches: Training batches of each rank to use; when None a whole epoch, or the last 20 of training.
        regroup: Merge small batches up to so many samples before they run, see `recalibrate_batch_norm`.
        forward: ``forward(module, batch)`` runs the module instead of its ``training_step``; needed with manual
            optimization. The batch has been moved to the device.
        batches: Batches, or a function that returns them, to use instead of the training data.
        every_n_validations: Recalibrate at every n-th validation only; others see the running average.

    Attributes:
        last_report: The `RecalibrationReport` of the last time, or None.

    Raises:
        UnknownNameError: If there is no such estimator.
        ValueError: If a number is not positive, or an option goes with another estimator.
        TypeError: If `batches` is an iterator, which could be used only once.
        MisconfigurationException: In setup, if it cannot work with this Trainer: sharded strategies, averaged weights
            with ``"last_batches"``, StochasticWeightAveraging behind it; at the start of fit, manual optimization
            without `forward`, or training data that cannot be read a second time.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[BatchNormRecalibration(num_batches=200)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        *,
        estimator: Estimator = "pooled",
        num_batches: int | None = None,
        regroup: int | None = None,
        forward: Forward | None = None,
        batches: Batches | None = None,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        check_regroup(estimator, regroup)
        if estimator == "last_batches" and (forward is not None or batches is not None):
            raise ValueError(
                'estimator="last_batches" takes the statistics of training as it goes by, so forward= and batches= '
                "would never be used. Leave them out, or choose another estimator."
            )
        for name, number in (("num_batches", num_batches), ("every_n_validations", every_n_validations)):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} would never recalibrate; give a positive number.")
        if hasattr(batches, "__next__"):
            raise TypeError(
                f"batches is a {type(batches).__name__}, an iterator that can be used only once; give a list, a "
                "DataLoader or a function that returns one."
            )
        self.estimator: Estimator = estimator
        self.num_batches = num_batches
        self.regroup = regroup
        self.forward = forward
        self.batches = batches
        self.every_n_validations = every_n_validations
        self.last_report: RecalibrationReport | None = None
        self._validations = 0
        self._kept = KeptAverage()
        self._recent: RecentBatchStatistics | None = None
        self._norms: list[_BatchNorm] = []
        self._training: list[bool] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The running average, if population statistics are in its place, and the counters.

        Returns:
            Plain tensors and numbers.
        """
        return {**self._kept.state_dict(), "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the running average and the counters of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._kept.load_state_dict(state_dict)
        self._validations = state_dict["validations"]

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Refuse what it cannot work with."""
        self._kept.forget_if_changed(pl_module)
        if stage != "fit":
            return
        strategies = SHARDED.intersection(kind.__name__ for kind in type(trainer.strategy).__mro__)
        if strategies:
            raise misconfiguration(
                trainer,
                f"BatchNormRecalibration runs the module on its own, which {strategies.pop()} does not allow, as it "
                "shards the weights. Use DDP, or recalibrate_batch_norm on the trained model.",
            )
        stochastic = stochastic_averaging_of(trainer)
        if self.estimator == "last_batches" and (weight_averaging_of(trainer) or stochastic):
            raise misconfiguration(
                trainer,
                'BatchNormRecalibration(estimator="last_batches") keeps statistics of the weights of training, and the '
                'weights here are averaged. Choose another estimator, such as "pooled".',
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        if stochastic is not None and callbacks.index(self) < callbacks.index(stochastic):
            raise misconfiguration(
                trainer,
                "StochasticWeightAveraging can put its average into the module after BatchNormRecalibration has run "
                "for the last time, so the statistics would belong to other weights. Put BatchNormRecalibration behind "
                "it: callbacks=[StochasticWeightAveraging(...), BatchNormRecalibration()].",
            )

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look for norms and begin to mark checkpoints."""
        if self.forward is None and self.estimator != "last_batches":
            refuse_unusable_step(trainer, pl_module)
        if not any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            rank_zero_warn(
                f"{type(pl_module).__name__} has no batch norm, so BatchNormRecalibration does nothing. Put "
                "BatchNormInsertion() into the callbacks to insert some.",
                category=NoEffectWarning,
            )
        mark_checkpoints(pl_module, self._mark, owner=self)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look which norms there are, and that the data can be read; a resumed run may begin in mid-epoch."""
        if not self._kept.is_of_checkpoint:
            self._kept.forget_if_changed(pl_module)
            if self._kept and weight_averaging_of(trainer) is not None:
                # A second fit starts its average from a copy of the module: both get the running average.
                self._kept.write_running(pl_module)
        if self.estimator == "last_batches":
            self._recent = RecentBatchStatistics(pl_module, num_batches=self.num_batches or LAST_BATCHES)
            self._recent.__enter__()
        self.on_train_epoch_start(trainer, pl_module)
        if self._norms and self._recent is None and self.batches is None:
            # Data that cannot be read a second time are refused now, and not after an epoch.
            training_batches(trainer, num_batches=self.num_batches)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look again which norms there are, as other callbacks may have changed the module."""
        self._norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Put the running average back, if population statistics are in its place."""
        if self._recent is not None:
            self._recent.forget_batch()
        if self._kept:
            with averaged_weights(trainer, pl_module, weight_averaging_of(trainer)):
                self._kept.put_back(pl_module)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember which norms train: validation puts all of them in evaluation mode before it asks us."""
        self._training = [norm.training for norm in self._norms]
        if self._recent is not None:
            self._recent.end_batch()

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Recalibrate, so that this validation sees population statistics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._count_and_recalibrate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Recalibrate here if no validation will."""
        if not trainer.enable_validation:
            self._count_and_recalibrate(trainer, pl_module)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Leave the model with population statistics, also when the weights moved since the last ones."""
        # That average comes into the module in this very hook, or did so after the last validation.
        self._recalibrate(trainer, pl_module, again=stochastic_averaging_of(trainer) is not None)
        if self._kept and weight_averaging_of(trainer) is not None:
            # The average is copied into the module in this hook too, before or after this.
            self._kept.write_population(pl_module)

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint which statistics it carries."""
        self._mark(checkpoint)

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Stop marking checkpoints."""
        self._release(pl_module)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Stop marking checkpoints; the module keeps the statistics it has, and the state says which."""
        self._release(pl_module)

    def _release(self, module: nn.Module) -> None:
        unmark_checkpoints(module, owner=self)
        if self._recent is not None:
            self._recent.__exit__(None, None, None)
            self._recent = None
        self._norms, self._training = [], None

    def _count_and_recalibrate(self, trainer: "Trainer", module: "LightningModule") -> None:
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._recalibrate(trainer, module)

    def _recalibrate(self, trainer: "Trainer", module: "LightningModule", *, again: bool = False) -> None:
        # With a running average set aside no batch has been trained on since the last time.
        if (self._kept and not again) or not self._norms or self._training is None:
            return
        averaging = weight_averaging_of(trainer)
        with averaged_weights(trainer, module, averaging):
            running, stage = self._kept.running_of(module), trainer.state.stage
            try:
                # Transfer hooks and steps that augment in training ask the Trainer whether it trains.
                trainer.training = True
                with preserve_modes(module), no_trace(module):
                    # The modes of training tell which norms are frozen.
                    module.training = True
                    for norm, training in zip(self._norms, self._training, strict=True):
                        norm.training = training
                    self.last_report = self._estimate(trainer, module)
            except NoNormError as error:
                rank_zero_warn(f"BatchNormRecalibration does nothing. {error}", category=NoEffectWarning)
                return
            except (BatchSizeError, NonFiniteError) as error:
                rank_zero_warn(f"{error} The running statistics are used instead.", category=StatisticsWarning)
                return
            finally:
                trainer.state.stage = stage
            self._kept.keep(running, module, step=trainer.global_step)
        self._kept.in_module = averaging is None
        rank_zero_info(f"BatchNormRecalibration at step {self._kept.step}: {self.last_report}.")

    def _estimate(self, trainer: "Trainer", module: "LightningModule") -> RecalibrationReport:
        if self._recent is not None:
            return self._recent.write()
        return recalibrate_batch_norm(
            module,
            self._batches(trainer),
            estimator=self.estimator,
            forward=as_in_training(trainer, self.forward),
            num_batches=self.num_batches,
            regroup=self.regroup,
            # The running average lags in every training; the report says how far.
            warn_drift=None,
        )

    def _batches(self, trainer: "Trainer") -> Iterable[Any]:
        if self.batches is None:
            return training_batches(trainer, num_batches=self.num_batches)
        return self.batches() if callable(self.batches) else self.batches

    def _mark(self, checkpoint: dict[str, Any]) -> None:
        self._kept.mark(checkpoint, self.estimator)
