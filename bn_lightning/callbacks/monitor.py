"""Record pre-activations and outputs during training, on a schedule, into every logger."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from bn_lightning.callbacks._activation_log import COLUMNS, ActivationLog
from bn_lightning.callbacks._activation_run import ActivationRun
from bn_lightning.callbacks._activation_series import all_series
from bn_lightning.callbacks._activation_warnings import ActivationWarnings
from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, misconfiguration, rank_zero_warn
from bn_lightning.callbacks._dry_run import idle_optimizers
from bn_lightning.callbacks._example import Example, example_of, muted_logging
from bn_lightning.callbacks._metrics import preserve_metrics
from bn_lightning.callbacks._step_window import StepWindow
from bn_lightning.callbacks._units import UnitFollower, Units, probe_batches, resolve_units
from bn_lightning.errors import NoEffectWarning, NoSiteError
from bn_lightning.probes.outputs import Output, find_outputs
from bn_lightning.probes.recorder import Mode, checked_mode
from bn_lightning.probes.recording import checked_percentiles
from bn_lightning.probes.sites import monitored_sites, site_labels
from bn_lightning.probes.visits import split_visits
from bn_lightning.schedule import Schedule
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.planning import plan_insertion

if TYPE_CHECKING:
    import pandas


class ActivationMonitor(CallbackBase):
    """Records the distribution of every layer's pre-activations, and outputs if asked, while a model trains.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it; it is
    called by the affine layer that made it. At a due optimizer step (counted from 0) the training
    forward of that step is recorded, all micro-batches of an accumulated gradient together, merged over
    ranks, and written with that step. Validation, the sanity check and recomputed forwards of gradient
    checkpointing are never recorded. Training is the same to the bit with the monitor and without, and
    torch.compile meets no graph break: a recorded step and the others each have a graph of their own.

    There are two modes. "sampled" reads up to `max_elements` elements a layer and forward (see
    `bn_lightning.record_activations` for what a sample can say), and all elements where there are no more. "exact"
    reads every element once for moments, extremes and dead channels, and 16,384 for percentiles, whose rank is
    then right within 0.01; it costs about 4 ns an element on the CPU.

    What is written, in the unit of the activation, with `<index>` the layer's place in the forward:

    ==============================================  =========================================================
    `preactivation_mean/<index>.<layer>`            mean
    `preactivation_var/<index>.<layer>`             biased variance, all channels together
    `preactivation_p15/<index>.<layer>`, p50, p85   percentiles
    `preactivation_saturated/<index>.<layer>`       share of elements where the nonlinearity's derivative is below
                                                    5 % of its peak; for a ReLU the share it sets to 0
    `preactivation_dead/<index>.<layer>`            share of channels with all elements there; where all were read
    `preactivation_nonfinite/<index>.<layer>`       NaN and infinities, exact; where there are any
    `output_mean/<index>.<layer>`, …                the same of the outputs of `layers`, but saturated and dead
    `preactivation_unit12_p15/<index>.<layer>`, …   percentiles of unit 12 on the probe set
    `preactivation_typical_p15/<index>.<layer>`, …  the same of the typical unit, whichever it is in this run
    ==============================================  =========================================================

    Every TensorBoardLogger also gets a margin chart a layer (Custom Scalars) and, at the end of fit,
    figures; other loggers get the scalars. `table()` holds all rows, with skewness, excess kurtosis and, where all
    elements were read, min and max; at the end of fit it is written as `activations.csv` to each logger's folder.
    Several monitors of one Trainer have names: tags begin with `<name>.` and the file is `activations-<name>.csv`.

    Warnings come once a layer: of non-finite values at once; of saturated layers (half of the elements of a
    nonlinearity with two flat sides), dead channels (a quarter of them) and a standard deviation that changes by a
    factor of 100 over the depth, when three recorded steps in a row show it.

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
        layers: Modules whose outputs are recorded too: fnmatch patterns on their paths and module types, one or
            several. A module called several times in a forward has a series for each call.
        mode: "sampled" or "exact".
        max_elements: Elements read of a tensor and forward; None reads all, slowly. At least 16,384 in exact mode.
        warn: Whether to warn of what is recorded.
        figures: Draw figures at the end of fit, if there is a TensorBoardLogger.
        name: Tells several monitors of one Trainer apart; letters, digits, "_" and "-". Of several without a name the
            second is called "2", and so on.

    Raises:
        ValueError: If an argument is out of range; at the start of fit, if a layer has no such unit.
        UnknownNameError: If there is no such mode; at the start of fit, if a pattern or type matches no layer.
        MisconfigurationException: At the start of fit, if two monitors have one name, or single units cannot be
            probed because the module's training_step optimizes manually.

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
        layers: str | type[nn.Module] | Sequence[str | type[nn.Module]] = (),
        mode: Mode = "sampled",
        max_elements: int | None = 1024,
        warn: bool = True,
        figures: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        if probe_size < 2:
            raise ValueError(f"A probe set needs two samples or more, got probe_size={probe_size}.")
        if max_elements is not None and max_elements < 1:
            raise ValueError(f"max_elements must be at least 1, or None for all; got {max_elements}.")
        if not re.fullmatch(r"[\w-]*", name):
            raise ValueError(f"A monitor's name goes into tags and file names: letters, digits, _ and -, not {name!r}.")
        self.schedule = Schedule(every_n_steps, dense_until, tuple(steps))
        self.percentiles = checked_percentiles(percentiles)
        self.units: Units = {"last": "typical"} if units == "typical" else dict(units or {})
        self.probe = probe
        self.probe_size = probe_size
        self.include = include
        self.exclude = exclude
        self.layers = layers
        checked_mode(mode)
        self.mode: Mode = mode
        self.max_elements = max_elements
        self.warns = warn
        self.draws_figures = figures
        self.name = name
        self._log = ActivationLog((), self.percentiles)
        self._labels: tuple[str, ...] = ()
        self._run: ActivationRun | None = None
        self._followed_before: dict[str, list[int]] = {}

    @property
    def state_key(self) -> str:
        """Tells several monitors of one Trainer apart in its checkpoints."""
        settings: tuple[object, ...] = (
            self.schedule,
            self.percentiles,
            self.units,
            self.include,
            self.exclude,
            self.max_elements,
        )
        # What came later is left out at its default, so that older checkpoints are found again.
        settings += tuple(extra for extra in (self.layers, self.name, self.mode) if extra not in ((), "", "sampled"))
        return f"ActivationMonitor{settings!r}"

    def state_dict(self) -> dict[str, Any]:
        """The units followed, so that a resumed run follows the same ones."""
        follower = None if self._run is None else self._run.follower
        if follower is None or not all(follower.units.values()):
            return {}
        return {"units": {self._labels[index]: list(units) for index, units in follower.units.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the units of the run that is resumed."""
        self._followed_before = dict(state_dict.get("units", {}))

    def table(self) -> "pandas.DataFrame":
        """What was recorded in the last or the running fit.

        Returns:
            A DataFrame with the columns step, layer, quantity and value; quantities are
            `preactivation_mean`, `_var`, `_p15` …, `_skewness`, `_kurtosis`, `_min`, `_max`, `_saturated`, `_dead`,
            `_nonfinite`, `preactivation_unit12_p50` for units, and `output_mean` … for outputs.
        """
        return self._log.table()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Find the nonlinearities and put hooks on; norms are inserted and the strategy is set up by now."""
        self._remove()
        self._run = None
        name = _names(trainer)[self]
        example = example_of(trainer, pl_module)
        with preserve_metrics(pl_module), muted_logging(pl_module), idle_optimizers(pl_module):
            sites = self._sites(pl_module, example)
            outputs = self._outputs(pl_module, example)
        self._labels, series = site_labels(sites), all_series(sites, outputs)
        self._log = ActivationLog(series, self.percentiles, name=name)
        if not series:
            rank_zero_warn(
                f"ActivationMonitor records nothing: none of the nonlinearities met in {type(pl_module).__name__}."
                f"{example.entry} has a pre-activation made by an affine layer. Check that the example "
                "(example_input_array, or else the first training batch) takes the path with the activations in it, "
                "or name modules whose outputs to record: ActivationMonitor(layers=…).",
                category=NoEffectWarning,
            )
            return
        channels = [one.channels for one in series]
        device = pl_module.device
        self._run = ActivationRun(
            getattr(pl_module, "_orig_mod", pl_module),
            sites,
            outputs,
            window=StepWindow(self.schedule, channels, max_elements=self.max_elements, device=device, mode=self.mode),
            log=self._log,
            follower=self._unit_follower(trainer, pl_module, sites, example.entry) if self.units else None,
            warnings=ActivationWarnings(series) if self.warns else None,
        )

    def _sites(self, pl_module: "LightningModule", example: Example) -> tuple[Site, ...]:
        try:
            plan = plan_insertion(pl_module, example.args, example.kwargs, entry=example.entry)
        except NoSiteError:
            return ()
        return split_visits(monitored_sites(plan.sites, include=self.include, exclude=self.exclude))

    def _outputs(self, pl_module: "LightningModule", example: Example) -> tuple[Output, ...]:
        if not self.layers:
            return ()
        model: nn.Module = getattr(pl_module, "_orig_mod", pl_module)
        # Bound, so that the hooks of the LightningModule itself run where forward is the entry.
        entry = model if example.entry == "forward" else getattr(model, example.entry)
        return find_outputs(model, self.layers, lambda: entry(*example.args, **example.kwargs))

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

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once: the training data are there by now."""
        if self._run is not None and self._run.follower is not None:
            self._run.follower.batches = probe_batches(trainer, pl_module, self.probe, self.probe_size)

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Record the coming forward if its optimizer step is due; probe single units with the weights of now."""
        if self._run is not None:
            self._run.begin_batch(trainer, pl_module)

    def on_before_backward(self, trainer: "Trainer", pl_module: "LightningModule", loss: Tensor) -> None:
        """Stop recording: gradient checkpointing would show the same activations again."""
        if self._run is not None:
            self._run.record(False)

    def on_after_backward(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Go on where a training_step takes several backward passes itself."""
        if self._run is not None and not pl_module.automatic_optimization:
            self._run.record(True)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's statistics once its optimizer step is taken."""
        if self._run is not None:
            self._run.end_batch(trainer)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write what is left, the file and the figures; take the hooks out."""
        if self._run is not None:
            self._run.end(trainer, pl_module, figures=self.draws_figures)
        self._remove()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Take the hooks out and keep what was recorded, also on Ctrl-C."""
        self._remove()
        if self._run is not None:
            self._run.write_file(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Take the hooks out."""
        self._remove()

    def _remove(self) -> None:
        if self._run is not None:
            self._run.remove()


def _names(trainer: "Trainer") -> dict[ActivationMonitor, str]:
    """A name for each monitor of a Trainer; the first without one of its own has none."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    monitors = [callback for callback in callbacks if isinstance(callback, ActivationMonitor)]
    unnamed = [monitor for monitor in monitors if not monitor.name]
    numbers = {monitor: str(number) if number > 1 else "" for number, monitor in enumerate(unnamed, 1)}
    names = {monitor: monitor.name or numbers[monitor] for monitor in monitors}
    doubled = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if doubled:
        raise misconfiguration(
            trainer,
            f"{len(monitors)} ActivationMonitors of this Trainer share the name {', '.join(map(repr, doubled))}, and "
            "would overwrite each other's files and charts. Give each its own: ActivationMonitor(name=…).",
        )
    return names


__all__ = ["COLUMNS", "ActivationMonitor"]
