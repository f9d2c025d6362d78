"""Measure internal covariate shift during training, on a schedule, into every logger."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bn_lightning.callbacks._activation_shift import ActivationShift
from bn_lightning.callbacks._compat import LightningModule, Trainer, rank_zero_warn
from bn_lightning.callbacks._measure_figures import shift_figures
from bn_lightning.callbacks._probe_monitor import ProbeMonitor
from bn_lightning.callbacks._step_batches import StepBatches
from bn_lightning.errors import NoEffectWarning, NoSiteError
from bn_lightning.probes.covariate_shift import LayerShift, gradient_covariate_shift
from bn_lightning.probes.objective import LossFn
from bn_lightning.schedule import Schedule

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class CovariateShiftMonitor(ProbeMonitor):
    """Measures at due optimizer steps how far gradients and activations of each layer shift in that step.

    At a due step t (counted from 0) the parameters are copied before the step. After it, the gradients of the step's
    own batches (all micro-batches of an accumulated gradient) are computed anew at mixtures of θ_t and θ_{t+1}, and a
    fixed probe set is run at both. Training is the same to the bit with the monitor and without: weights, buffers,
    gradients, logged metrics, plain attributes and random state. Beyond its reach are files that a ``training_step``
    writes, generators of its own, objects of other kinds that it keeps as attributes or in containers, as metrics in a
    dict, and tensors that it writes to in place, be they attributes or frozen parameters, as those of a teacher. A
    batch for which it returns None is no part of the step.

    What is written, with `<index>` the layer's place among those measured; a layer is the path of a module with
    parameters of its own for gradients, of the affine layer before the nonlinearity for activations:

    ===================================================  ====================================================
    `gradient_shift/<index>.<layer>`                     ‖G − G'‖₂, unit of the gradient
    `gradient_shift_relative/…`                          ‖G − G'‖₂ / ‖G‖₂
    `gradient_shift_per_unit_step/…`                     the same over the length of the step of the layers
                                                         before, in 1/parameter unit: compare rates by this one
    `gradient_shift_cosine/…`                            cosine of the angle between G and G'
    `gradient_shift_dead/…`                              1 for a layer whose G is 0 (the others are NaN), else 0
    `gradient_noise_relative/…`, `_cosine/…`             the same between this step's batches and the last's, at
                                                         θ_t: the reference line; not at the first step
    `activation_shift_wasserstein/…`                     mean over units of the Wasserstein-1 distance, between
                                                         θ_t and θ_{t+1}, unit of the activation
    `activation_shift_wasserstein_normalised/…`          the same over the pooled standard deviation
    `activation_shift_mean_delta/…`, `_variance_delta/…` of |Δμ| and |Δσ²|
    `activation_shift_gaussian_kl/…`                     of the KL divergence of normal distributions, nats
    `activation_shift_dead_units/…`                      number of units that were constant both times
    `activation_drift_…/…`                               the same six between the start of training and θ_{t+1}
    ===================================================  ====================================================

    `table()` holds all rows; at the end of fit it is written as `covariate_shift.csv` to each logger's folder, and
    every TensorBoardLogger gets figures. Several monitors of one Trainer have names: tags begin with `<name>.` and the
    file is `covariate_shift-<name>.csv`. In distributed training each rank measures on its own batches, and rank
    zero's are written; sharded parameters are not supported.

    Drift is of up to 1,024 values a unit, and goes on in a run that is resumed: checkpoints hold the start's
    activations, and the probe set of the training data is drawn with a seed of its own, so it is the same in all runs
    on the same data. Where it is not, a warning says that drift starts anew.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", Definition 2.1, figure 2, and
    figure 8 for the moments. The two families can disagree: both are shown.

    Args:
        every_n_steps: Measure every so many optimizer steps; 0 turns this off.
        dense_until: Measure every step before this one too.
        steps: Measure these steps too.
        every_n_epochs: Measure the first step of epochs 0, n, 2n, … too; 0 turns this off.
        gradients: Whether to measure the shift of gradients. It costs a forward and backward for each layer, and one
            for the noise.
        activations: Whether to measure the shift of activations. It costs two forwards of the probe set.
        layers: fnmatch patterns on the paths of the layers whose gradients are compared: to choose few. By
            default all with a parameter of two or more axes but the first, before which nothing moves.
        include: fnmatch patterns on the paths of the layers whose activations are compared; None takes all.
        parameters: fnmatch patterns on the parameters' paths, where several optimizers share the module: only
            these count as moved.
        loss_fn: ``loss_fn(module, batch)``, for a module with manual optimization; by default its ``training_step``.
        probe: The probe set: a tensor, or a batch as the training loader yields. None takes the first
            batches of the training data, once, without touching the Trainer's own iterators.
        probe_size: How many samples of the training data to probe with, in whole batches.
        warn: Whether to warn of layers whose gradients cannot be compared: dead ones and non-finite ones.
        figures: Draw figures at the end of fit, if there is a TensorBoardLogger.
        name: Tells several monitors of one Trainer apart; letters, digits, "_" and "-". Of several without a name the
            second is called "2", and so on.

    Raises:
        ValueError: If an argument is out of range or nothing is to be measured; at a due step, if there is no loss.
        TypeError: At a due step, if the loss is none.
        UnknownNameError: At the start of fit or a due step, if a pattern matches nothing.
        MisconfigurationException: Of the Trainer's namespace, at the start of fit, if the module optimizes manually and
            there is no `loss_fn`, or two monitors have one name.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
        >>> monitor = CovariateShiftMonitor(every_n_steps=100, layers=["net.4", "net.8"])
        >>> trainer = Trainer(callbacks=[monitor], logger=False, accelerator="cpu")
        >>> monitor.table().columns.tolist()
        ['step', 'layer', 'quantity', 'value']
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        dense_until: int = 0,
        steps: Collection[int] = (),
        every_n_epochs: int = 0,
        gradients: bool = True,
        activations: bool = True,
        layers: str | Sequence[str] | None = None,
        include: str | Sequence[str] | None = None,
        parameters: str | Sequence[str] | None = None,
        loss_fn: LossFn | None = None,
        probe: Any = None,
        probe_size: int = 1000,
        warn: bool = True,
        figures: bool = True,
        name: str = "",
    ) -> None:
        if not (gradients or activations):
            raise ValueError("There is nothing to measure: set gradients=True or activations=True.")
        self.gradients = gradients
        self.activations = activations
        self.layers = layers
        self.include = include
        self.parameters = parameters
        self._resumed: dict[str, Any] = {}
        schedule = Schedule(every_n_steps, dense_until, tuple(steps), every_n_epochs)
        super().__init__(
            "covariate_shift",
            schedule,
            loss_fn=loss_fn,
            probe=probe,
            probe_size=probe_size,
            warn=warn,
            figures=figures,
            name=name,
        )

    @property
    def state_key(self) -> str:
        """Tells several monitors of one Trainer apart in its checkpoints."""
        settings = (self.schedule, self.gradients, self.activations, self.layers, self.include, self.parameters)
        return f"CovariateShiftMonitor{(*settings, self.name)!r}"

    def state_dict(self) -> dict[str, Any]:
        """The activations at the start of training, so that a resumed run measures drift from there."""
        return {} if self._shift is None else self._shift.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the start of the run that is resumed."""
        self._resumed = dict(state_dict)

    def _begin(self, name: str) -> None:
        super()._begin(name)
        self._shift: ActivationShift | None = None
        self._parameters: dict[str, Tensor] = {}
        self._batches = StepBatches()
        self._due = False

    def _takes_loss(self) -> bool:
        return self.gradients

    def _figures(self, table: "pandas.DataFrame") -> "dict[str, Figure]":
        return shift_figures(table)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse what cannot be measured, and find the nonlinearities; norms are inserted by now."""
        super().on_fit_start(trainer, pl_module)
        if self.activations:
            self._shift = ActivationShift(trainer, pl_module)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once, and run it for the drift: the training data are there by now."""
        if self._shift is None:
            return
        batches = self._probe_batches(trainer, pl_module)
        try:
            self._shift.attach(pl_module, batches, of_training=self.probe is None, include=self.include)
        except NoSiteError as error:
            self._shift = None
            rank_zero_warn(f"CovariateShiftMonitor compares no activations. {error}", category=NoEffectWarning)
            return
        with self._guarded(trainer, pl_module):
            self._shift.start(batches, self._resumed)
        self._resumed = {}

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Copy the parameters if the coming optimizer step is due, and keep its batches."""
        if trainer.global_step != self._steps.seen:
            self._batches.begin_step()
            self._due = False
        if self._begins_due_step(trainer, batch_idx):
            self._due = True
            self._parameters = {name: part.detach().clone() for name, part in pl_module.named_parameters()}
            if self._shift is not None:
                with self._guarded(trainer, pl_module):
                    self._shift.begin_step()
        if self.gradients:
            self._batches.keep(batch)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure a due step once it is taken."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # Lightning passes a batch over for which training_step returned None.
        if self.gradients:
            self._batches.trained_on(passed_over=self.loss_fn is None and not outputs)
        step = self._steps.seen
        if not self._due or step is None or trainer.global_step == step:
            return
        self._due = False
        before, self._parameters = self._parameters, {}
        scalars: dict[str, float] = {}
        if self.gradients and not self._batches.now:
            self._warn_once(
                "no loss",
                f"The shift of gradients is not measured at step {step}: training_step returned no loss for any batch "
                "of it.",
            )
        elif self.gradients:
            with self._guarded(trainer, pl_module):
                found = gradient_covariate_shift(
                    pl_module,
                    self._batches.now,
                    before,
                    loss_fn=self.loss_fn,
                    layers=self.layers,
                    parameters=self.parameters,
                    reference=self._batches.last or None,
                )
            self._warn_of_states(step, found)
            scalars |= self._add(step, {entry.layer: entry.numbers() for entry in found})
        if self._shift is not None:
            with self._guarded(trainer, pl_module):
                found_shift = self._shift.end_step()
            for numbers in found_shift:
                scalars |= self._add(step, numbers)
        self._write(trainer, scalars, step)

    def _warn_of_states(self, step: int, found: Sequence[LayerShift]) -> None:
        states = {entry.layer: entry.shift.state for entry in found if entry.shift.state}
        if new := {layer: state for layer, state in states.items() if layer not in self._warned}:
            words = ", ".join(f"{layer} is {state}" for layer, state in new.items())
            self._warn_once(
                words,
                f"Gradients at step {step} cannot be compared in every layer: "
                f"{words}. Their shift is NaN, not 0; a dead layer has a gradient of exactly 0 before the step, "
                "one that died after it.",
            )
            self._warned |= set(new)

    def _release(self) -> None:
        self._due = False
        if self._shift is not None:
            self._shift.release()
        self._parameters, self._batches = {}, StepBatches()
