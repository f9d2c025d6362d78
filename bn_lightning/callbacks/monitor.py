"""Record pre-activations during training, on a schedule, into every logger."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from bn_lightning.callbacks._activation_log import COLUMNS, ActivationLog
from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._example import Example, example_of, muted_logging
from bn_lightning.callbacks._metrics import preserve_metrics
from bn_lightning.callbacks._step_window import StepWindow
from bn_lightning.callbacks._tensorboard import is_tensorboard, write_figures
from bn_lightning.callbacks._units import UnitFollower, Units, probe_batches, resolve_units
from bn_lightning.errors import NoEffectWarning, NoSiteError, StatisticsWarning
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.probes.recording import checked_percentiles
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.schedule import Schedule
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import Taps, tap_preactivations

if TYPE_CHECKING:
    import pandas


class ActivationMonitor(CallbackBase):
    """Records mean, variance and percentiles of every layer's pre-activations while a model trains.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it; it is
    called by the affine layer that made it. At a due optimizer step (counted from 0) the training
    forward of that step is recorded, all micro-batches of an accumulated gradient together, merged over
    ranks, and written with that step. Validation, the sanity check and recomputed forwards of gradient
    checkpointing are never recorded. Up to `max_elements` elements a layer and forward are read (see
    `bn_lightning.record_activations` for what a sample can say); training is the same to the bit
    with the monitor and without.

    What is written, in the unit of the activation, with `<index>` the layer's place in the forward:

    ==============================================  =========================================================
    `preactivation_mean/<index>.<layer>`            mean
    `preactivation_var/<index>.<layer>`             biased variance, all channels together
    `preactivation_p15/<index>.<layer>`, p50, p85   percentiles
    `preactivation_nonfinite/<index>.<layer>`       NaN and infinities, exact; where there are any
    `preactivation_unit12_p15/<index>.<layer>`, …   percentiles of unit 12 on the probe set
    `preactivation_typical_p15/<index>.<layer>`, …  the same of the typical unit, whichever it is in this run
    ==============================================  =========================================================

    Every TensorBoardLogger also gets a margin chart a layer (Custom Scalars) and, at the end of fit,
    figures; other loggers get the scalars. `table()` holds all rows; at the end of fit it is written as
    `activations.csv` to each logger's folder.

    Source: Ioffe & Szegedy 2015, figure 1(b, c) follows the {15, 50, 85}th percentiles of one
    sigmoid's input. The *typical* unit is here the one whose median on the probe set is, at the first
    probe, nearest the median of all the layer's units' medians.

    Args:
        every_n_steps: Record every so many optimizer steps; 0 turns this off.
        dense_until: Record every step before this one too.
        steps: Record these steps too.
        percentiles: Percentages between 0 and 100.
        units: Single units to follow on the probe set: numbers or "typical", by fnmatch pattern on
            the layer's path, as `{"net.4": [12, 40]}`; the key "last" is the last layer. "typical" alone
            follows the typical unit of the last layer.
        probe: The probe set: a tensor, or a batch as the training loader yields. None takes the first
            batches of the training data, once, without touching the Trainer's own iterators.
        probe_size: How many samples of the training data to probe with, in whole batches.
        include: fnmatch patterns on the layers' paths; None takes all.
        exclude: fnmatch patterns on the layers' paths to leave out.
        max_elements: Elements read of a pre-activation and forward; None reads all, slowly.
        figures: Draw figures at the end of fit, if there is a TensorBoardLogger.

    Raises:
        ValueError: If an argument is out of range; at the start of fit, if a layer has no such unit.
        UnknownNameError: At the start of fit, if a pattern matches no layer.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks.monitor import ActivationMonitor
        >>> monitor = ActivationMonitor(every_n_steps=50, units={"last": "typical"})
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
        percentiles: Sequence[float] = (15, 50, 85),
        units: Units | Literal["typical"] | None = None,
        probe: Any = None,
        probe_size: int = 1000,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        max_elements: int | None = 1024,
        figures: bool = True,
    ) -> None:
        super().__init__()
        if probe_size < 2:
            raise ValueError(f"A probe set needs two samples or more, got probe_size={probe_size}.")
        if max_elements is not None and max_elements < 1:
            raise ValueError(f"max_elements must be at least 1, or None for all; got {max_elements}.")
        self.schedule = Schedule(every_n_steps, dense_until, tuple(steps))
        self.percentiles = checked_percentiles(percentiles)
        self.units: Units = {"last": "typical"} if units == "typical" else dict(units or {})
        self.probe = probe
        self.probe_size = probe_size
        self.include = include
        self.exclude = exclude
        self.max_elements = max_elements
        self.draws_figures = figures
        self._log = ActivationLog((), self.percentiles)
        self._labels: tuple[str, ...] = ()
        self._taps: Taps | None = None
        self._window: StepWindow | None = None
        self._follower: UnitFollower | None = None
        self._followed_before: dict[str, list[int]] = {}
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Tells several monitors of one Trainer apart in its checkpoints."""
        settings = (self.schedule, self.percentiles, self.units, self.include, self.exclude, self.max_elements)
        return f"ActivationMonitor{settings!r}"

    def state_dict(self) -> dict[str, Any]:
        """The units followed, so that a resumed run follows the same ones."""
        if self._follower is None or not all(self._follower.units.values()):
            return {}
        return {"units": {self._labels[index]: list(units) for index, units in self._follower.units.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the units of the run that is resumed."""
        self._followed_before = dict(state_dict.get("units", {}))

    def table(self) -> "pandas.DataFrame":
        """What was recorded in the last or the running fit.

        Returns:
            A DataFrame with the columns step, layer, quantity and value; quantities are
            `preactivation_mean`, `_var`, `_p15` …, `_nonfinite`, and `preactivation_unit12_p50` for units.
        """
        return self._log.table()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Find the nonlinearities and put hooks on; norms are inserted and the strategy is set up by now."""
        self._remove_taps()
        self._window = self._follower = None
        self._warned.clear()
        example = example_of(trainer, pl_module)
        sites = self._sites(pl_module, example)
        self._labels = site_labels(sites)
        self._log = ActivationLog(self._labels, self.percentiles)
        if not sites:
            rank_zero_warn(
                f"ActivationMonitor records nothing: none of the nonlinearities met in {type(pl_module).__name__}."
                f"{example.entry} has a pre-activation made by an affine layer. Check that the example "
                "(example_input_array, or else the first training batch) takes the path with the activations in it.",
                category=NoEffectWarning,
            )
            return
        if self.units:
            self._follower = self._unit_follower(trainer, pl_module, sites, example.entry)
        channels = [site.channels for site in sites]
        self._window = StepWindow(self.schedule, channels, max_elements=self.max_elements, device=pl_module.device)
        self._taps = tap_preactivations(getattr(pl_module, "_orig_mod", pl_module), sites, self._receive)

    def _sites(self, pl_module: "LightningModule", example: Example) -> tuple[Site, ...]:
        try:
            with preserve_metrics(pl_module), muted_logging(pl_module):
                plan = plan_insertion(pl_module, example.args, example.kwargs, entry=example.entry)
        except NoSiteError:
            return ()
        return monitored_sites(plan.sites, include=self.include, exclude=self.exclude)

    def _unit_follower(
        self, trainer: "Trainer", pl_module: "LightningModule", sites: Sequence[Site], entry: str
    ) -> UnitFollower:
        if entry == "training_step" and not isinstance(self.probe, Tensor) and not pl_module.automatic_optimization:
            raise misconfiguration(
                trainer,
                "ActivationMonitor(units=…) would run a training_step that steps its optimizers itself on the probe "
                "set. Set example_input_array on the LightningModule, so that its forward is run instead.",
            )
        chosen = resolve_units(self.units, sites)
        typical = frozenset(index for index, numbers in chosen.items() if not numbers)
        for index, label in enumerate(self._labels):
            if index in chosen and not chosen[index]:
                chosen[index] = tuple(self._followed_before.get(label, ()))
        return UnitFollower(chosen, entry=entry, percentiles=self.percentiles, typical=typical)

    def _receive(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        if self._window is not None and self._window.recorder.recording:
            self._window.recorder.receive(layer, index, activation, channel_dim)
        elif self._follower is not None:
            self._follower.receive(layer, index, activation, channel_dim)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once: the training data are there by now."""
        if self._follower is not None:
            self._follower.batches = probe_batches(trainer, pl_module, self.probe, self.probe_size)

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Record the coming forward if its optimizer step is due; probe single units with the weights of now."""
        if self._window is not None and self._window.open_if_due(trainer.global_step):
            self._window.record(False)
            self._probe(trainer, pl_module)
            self._window.record(True)

    def on_before_backward(self, trainer: "Trainer", pl_module: "LightningModule", loss: Tensor) -> None:
        """Stop recording: gradient checkpointing would show the same activations again."""
        if self._window is not None:
            self._window.record(False)

    def on_after_backward(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Go on where a training_step takes several backward passes itself."""
        if self._window is not None and not pl_module.automatic_optimization:
            self._window.record(True)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's statistics once its optimizer step is taken."""
        if self._window is not None:
            self._window.record(False)
            if self._window.is_over(trainer.global_step):
                self._write_window(trainer, self._window)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write what is left, the file and the figures; take the hooks out."""
        if self._window is not None:
            if self._window.step is not None:
                self._write_window(trainer, self._window)
            if self._window.due_at_end(trainer.global_step):
                self._probe(trainer, pl_module)
            if trainer.is_global_zero:
                self._log.write_csv(trainer.loggers)
                if self.draws_figures and any(map(is_tensorboard, trainer.loggers)):
                    write_figures(trainer.loggers, self._log.figures(), trainer.global_step)
        self._remove_taps()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Take the hooks out and keep what was recorded, also on Ctrl-C."""
        self._remove_taps()
        if self._window is not None and trainer.is_global_zero:
            self._log.write_csv(trainer.loggers)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Take the hooks out."""
        self._remove_taps()

    def _remove_taps(self) -> None:
        if self._taps is not None:
            self._taps.remove()
            self._taps = None

    def _probe(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._follower is None:
            return
        # Every rank runs it, since a synchronised batch norm waits for all; rank zero's is written.
        step = trainer.global_step
        followed = self._follower.probe(trainer, pl_module)
        scalars = self._log.add_units(step, followed, typical=self._follower.typical)
        if trainer.is_global_zero:
            self._log.write(trainer.loggers, step, scalars)

    def _write_window(self, trainer: "Trainer", window: StepWindow) -> None:
        step = window.step or 0
        summaries = window.close()
        scalars = self._log.add_summaries(step, summaries)
        self._warn_of_nonfinite(step, summaries)
        if trainer.is_global_zero:
            self._log.write(trainer.loggers, step, scalars)

    def _warn_of_nonfinite(self, step: int, summaries: Sequence[ActivationSummary]) -> None:
        found = {label: s for label, s in zip(self._labels, summaries, strict=True) if s.nonfinite}
        if new := {label: s for label, s in found.items() if label not in self._warned}:
            counts = ", ".join(f"{s.nonfinite} in {label}" for label, s in new.items())
            rank_zero_warn(
                f"Non-finite pre-activations at step {step}: {counts}. They enter no other statistic; the count goes "
                "on in preactivation_nonfinite. Lower the learning rate or clip gradients.",
                category=StatisticsWarning,
            )
            self._warned |= set(new)


__all__ = ["COLUMNS", "ActivationMonitor"]
