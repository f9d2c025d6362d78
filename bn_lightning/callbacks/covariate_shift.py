"""Measure internal covariate shift during training, on a schedule, into every logger."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._example import Example, example_of, muted_logging
from bn_lightning.callbacks._metrics import preserve_metrics
from bn_lightning.callbacks._tensorboard import layer_tags, log_folders, write_scalars
from bn_lightning.callbacks._units import probe_batches
from bn_lightning.errors import NoEffectWarning, NoSiteError, StatisticsWarning
from bn_lightning.probes.covariate_shift import LayerShift, gradient_covariate_shift
from bn_lightning.probes.covariate_shift_activations import ActivationProbe, Activations
from bn_lightning.probes.measurements import MeasurementTable
from bn_lightning.probes.objective import LossFn
from bn_lightning.schedule import Schedule
from bn_lightning.surgery.forward import call_model
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion

if TYPE_CHECKING:
    import pandas

CSV_NAME = "covariate_shift.csv"


class CovariateShiftMonitor(CallbackBase):
    """Measures at due optimizer steps how far gradients and activations of each layer shift in that step.

    At a due step t (counted from 0) the parameters are copied before the step. After it, the gradients of the step's
    own batches (all micro-batches of an accumulated gradient) are computed anew at mixtures of θ_t and θ_{t+1}, and a
    fixed probe set is run at both. Training is the same to the bit with the monitor and without: weights, buffers,
    gradients, logged metrics and random state. State that a ``training_step`` keeps in plain attributes is beyond its
    reach.

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
    `activation_drift_…/…`                               the same six between the start of this fit and θ_{t+1}
    ===================================================  ====================================================

    `table()` holds all rows; at the end of fit it is written as `covariate_shift.csv` to each logger's folder.
    In distributed training each rank measures on its own batches, and rank zero's are written; sharded
    parameters are not supported.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", Definition 2.1, figure 2, and
    figure 8 for the moments. The two families can disagree: both are shown.

    Args:
        every_n_steps: Measure every so many optimizer steps; 0 turns this off.
        dense_until: Measure every step before this one too.
        steps: Measure these steps too.
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

    Raises:
        ValueError: If an argument is out of range or nothing is to be measured; at a due step, if there is no loss.
        TypeError: At a due step, if the loss is none.
        UnknownNameError: At the start of fit or a due step, if a pattern matches nothing.
        MisconfigurationException: Of the Trainer's namespace, at the start of fit, if the module optimizes manually and
            there is no `loss_fn`.

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
        gradients: bool = True,
        activations: bool = True,
        layers: str | Sequence[str] | None = None,
        include: str | Sequence[str] | None = None,
        parameters: str | Sequence[str] | None = None,
        loss_fn: LossFn | None = None,
        probe: Any = None,
        probe_size: int = 1000,
    ) -> None:
        super().__init__()
        if probe_size < 2:
            raise ValueError(f"A probe set needs two samples or more, got probe_size={probe_size}.")
        if not (gradients or activations):
            raise ValueError("There is nothing to measure: set gradients=True or activations=True.")
        self.schedule = Schedule(every_n_steps, dense_until, tuple(steps))
        self.gradients = gradients
        self.activations = activations
        self.layers = layers
        self.include = include
        self.parameters = parameters
        self.loss_fn = loss_fn
        self.probe = probe
        self.probe_size = probe_size
        self._forget()

    def _forget(self) -> None:
        self._table = MeasurementTable()
        self._sites: tuple[Site, ...] = ()
        self._entry = "forward"
        self._activations: ActivationProbe | None = None
        self._start: Activations = {}
        self._before: Activations = {}
        self._parameters: dict[str, Tensor] = {}
        self._batches: list[Any] = []
        self._last: list[Any] = []
        self._seen: int | None = None
        self._due = False
        self._warned: set[str] = set()

    def table(self) -> "pandas.DataFrame":
        """What was measured in the last or the running fit.

        Returns:
            A DataFrame with the columns step, layer, quantity and value; quantities as above.
        """
        return self._table.frame()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse what cannot be measured, and find the nonlinearities; norms are inserted by now."""
        self._forget()
        if self.gradients and self.loss_fn is None and not pl_module.automatic_optimization:
            raise misconfiguration(
                trainer,
                f"CovariateShiftMonitor cannot take the loss from training_step of {type(pl_module).__name__}, which "
                "optimizes manually. Pass loss_fn=lambda module, batch: ... and, with several optimizers, parameters=.",
            )
        if self.activations:
            example = example_of(trainer, pl_module)
            self._entry = example.entry
            self._sites = self._plan(pl_module, example)

    def _plan(self, pl_module: "LightningModule", example: Example) -> tuple[Site, ...]:
        try:
            with preserve_metrics(pl_module), muted_logging(pl_module):
                return plan_insertion(pl_module, example.args, example.kwargs, entry=example.entry).sites
        except NoSiteError:
            return ()

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once, and run it for the drift: the training data are there by now."""
        if not self.activations:
            return
        try:
            self._activations = ActivationProbe(
                pl_module,
                probe_batches(trainer, pl_module, self.probe, self.probe_size),
                sites=self._sites,
                forward=self._forward,
                include=self.include,
            )
        except NoSiteError as error:
            rank_zero_warn(f"CovariateShiftMonitor compares no activations. {error}", category=NoEffectWarning)
            return
        self._start = self._activate(trainer, pl_module)

    def _forward(self, module: Any, batch: Any) -> Any:
        if self._entry == "training_step" and not isinstance(batch, Tensor):
            return module.training_step(batch, 0)
        return call_model(module, batch)

    def _guarded(self, trainer: "Trainer", pl_module: "LightningModule") -> ExitStack:
        stack = ExitStack()
        for context in (
            preserve_metrics(pl_module),
            muted_logging(pl_module),
            trainer.precision_plugin.train_step_context(),
        ):
            stack.enter_context(context)
        return stack

    def _activate(self, trainer: "Trainer", pl_module: "LightningModule") -> Activations:
        if self._activations is None:
            return {}
        with self._guarded(trainer, pl_module):
            return self._activations.activations()

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Copy the parameters if the coming optimizer step is due, and keep its batches."""
        step = trainer.global_step
        if step != self._seen:
            self._seen = step
            self._last, self._batches = self._batches, []
            self._due = self.schedule.due(step)
            if self._due:
                self._parameters = {name: part.detach().clone() for name, part in pl_module.named_parameters()}
                self._before = self._activate(trainer, pl_module)
        self._batches.append(batch)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure a due step once it is taken."""
        if not self._due or self._seen is None or trainer.global_step == self._seen:
            return
        self._due = False
        step, before = self._seen, self._parameters
        self._parameters = {}
        scalars: dict[str, float] = {}
        if self.gradients:
            with self._guarded(trainer, pl_module):
                found = gradient_covariate_shift(
                    pl_module,
                    self._batches,
                    before,
                    loss_fn=self.loss_fn,
                    layers=self.layers,
                    parameters=self.parameters,
                    reference=self._last or None,
                )
            self._warn_of_states(step, found)
            scalars |= self._add(step, {entry.layer: entry.numbers() for entry in found})
        if self._activations is not None:
            after = self._activate(trainer, pl_module)
            scalars |= self._add(step, self._activations.shift(self._before, after).numbers())
            scalars |= self._add(step, self._activations.shift(self._start, after).numbers("activation_drift"))
        if trainer.is_global_zero:
            write_scalars(trainer.loggers, scalars, step)

    def _add(self, step: int, numbers: dict[str, dict[str, float]]) -> dict[str, float]:
        scalars: dict[str, float] = {}
        for tag, (layer, values) in zip(layer_tags(tuple(numbers)), numbers.items(), strict=True):
            self._table.add(step, layer, values)
            scalars |= {f"{quantity}/{tag}": value for quantity, value in values.items()}
        return scalars

    def _warn_of_states(self, step: int, found: Sequence[LayerShift]) -> None:
        states = {entry.layer: entry.shift.state for entry in found if entry.shift.state}
        if new := {layer: state for layer, state in states.items() if layer not in self._warned}:
            words = ", ".join(f"{layer} is {state}" for layer, state in new.items())
            rank_zero_warn(
                f"Gradients at step {step} cannot be compared in every layer: "
                f"{words}. Their shift is NaN, not 0; a dead layer has a gradient of exactly 0 before the step, "
                "one that died after it.",
                category=StatisticsWarning,
            )
            self._warned |= set(new)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write the file, and let go of batches and copies."""
        self._finish(trainer)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Keep what was measured, also on Ctrl-C."""
        self._finish(trainer)

    def _finish(self, trainer: "Trainer") -> None:
        self._due = False
        self._activations = None
        self._start = self._before = {}
        self._parameters, self._batches, self._last = {}, [], []
        if trainer.is_global_zero:
            self._table.write_csv(log_folders(trainer.loggers), CSV_NAME)
