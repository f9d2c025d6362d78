"""Record pre-activations, activations, outputs and gradients during training, on a schedule, into every logger."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from torch import Tensor, nn

from bn_lightning.callbacks._activation_monitor.fit import Monitoring
from bn_lightning.callbacks._activation_monitor.live_summary import LiveSummary
from bn_lightning.callbacks._activation_monitor.monitor_log import MonitorLog
from bn_lightning.callbacks._activation_monitor.settings import MonitorSettings
from bn_lightning.callbacks._activation_monitor.table import COLUMNS, TableFormat
from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer, own_state
from bn_lightning.callbacks._monitor_names import names_among
from bn_lightning.callbacks._units import Units
from bn_lightning.probes.recorder import Mode
from bn_lightning.schedule import Schedule

if TYPE_CHECKING:
    import pandas


class ActivationMonitor(CallbackBase):
    """Records the distribution of every layer's pre-activations, and what else is asked for, while a model trains.

    A pre-activation is the tensor a nonlinearity receives, so after any norm inserted before it; it is called by the
    affine layer that made it. At a due optimizer step (counted from 0) the training forward of that step is recorded,
    all micro-batches of an accumulated gradient together, merged over ranks, and written with that step. Validation,
    the sanity check and recomputed forwards of gradient checkpointing are never recorded. Training is the same to the
    bit with the monitor and without, and torch.compile meets no graph break: a recorded step and the others each have
    a graph of their own.

    There are two modes. "sampled" reads up to `max_elements` elements a layer and forward (see
    `bn_lightning.record_activations` for what a sample can say), and all elements where there are no more. "exact"
    reads every element once for moments, extremes and dead channels, and 16,384 for percentiles, whose rank is
    then right within 0.01; it costs about 4 ns an element on the CPU.

    What is written, in the unit of the activation, with `<index>` the layer's place in the forward:

    ===============================================  ========================================================
    `preactivation_mean/<index>.<layer>`             mean
    `preactivation_var/<index>.<layer>`              biased variance, all channels together
    `preactivation_p15/<index>.<layer>`, p50, p85    percentiles
    `preactivation_saturated/<index>.<layer>`        share of elements where the nonlinearity's derivative is below
                                                     5 % of its peak; for a ReLU the share it sets to 0
    `preactivation_dead/<index>.<layer>`             share of channels with all elements there; where all were read
    `preactivation_nonfinite/<index>.<layer>`        NaN and infinities, exact; where there are any
    `activation_mean/<index>.<layer>`, …             of what the nonlinearity returns: all but saturated and dead
    `output_mean/<index>.<layer>`, …                 the same of the outputs of `layers`
    `<kind>_gradient_norm/<index>.<layer>`           L2 norm of the loss's gradient, all elements of the step together
    `<kind>_gradient_mean/…`, `_var/…`               its mean and variance; `_nonfinite/…` where there are any
    `preactivation_unit12_p15/<index>.<layer>`, …    percentiles of unit 12 on the probe set
    `preactivation_typical_p15/<index>.<layer>`, …   the same of the typical unit, whichever it is in this run
    ===============================================  ========================================================

    Every TensorBoardLogger also gets charts (Custom Scalars), histograms and, at the end of fit, figures; other
    loggers get the scalars. `table()` holds all rows, with skewness, excess kurtosis and, where all elements were
    read, min and max; at the end of fit it is written as `activations.csv` to each logger's folder. Several monitors
    of one Trainer have names: tags begin with `<name>.` and the file is `activations-<name>.csv`.

    Warnings come once a layer: of non-finite values at once; of saturated layers (three in four elements of a
    nonlinearity with two flat sides), dead channels (three in five), a standard deviation over samples that changes
    by a factor of 100 over the depth, norms whose running statistics are far from their batches, and gradients that
    never come, when three recorded steps in a row show it; of layers that never ran, at the end.

    Gradients are those of the loss the optimizer descends: without a GradScaler's factor, with the Trainer's division
    by `accumulate_grad_batches`, and divided by the number of ranks, which average theirs. Each backward pass of the
    step counts beside the others; where none came they are NaN.

    At the start of each epoch the modules are compared with those before (0.3 ms for 100 of them). After a change the
    layers are found anew by one run of the example. Those that remain keep their tags, one whose number of channels
    changed goes on as `<layer>-<channels>ch`, a warning names what came and went, and code compiled by torch.compile
    is compiled anew. Patterns and units that match nothing any more are passed over. Where the example does not run
    on the changed model a warning says so, and recording ends. Changes within an epoch are seen at the next.

    Source: Ioffe & Szegedy 2015, figure 1(b, c) follows the {15, 50, 85}th percentiles of one
    sigmoid's input. The *typical* unit is here the one whose median on the probe set is, at the first
    probe, nearest the median of all the layer's units' medians.

    Args:
        every_n_steps: Record every so many optimizer steps; 0 turns this off.
        every_n_epochs: Record the first step of every so many epochs too; 0 turns this off.
        dense_until: Record every step before this one too.
        steps: Record these steps too.
        record: "preactivations", "activations" (what nonlinearities return), "gradients" (of the loss with respect to
            all that is recorded): one or several. Gradients alone go with `layers`.
        percentiles: Percentages between 0 and 100, these two left out: mode="exact" gives min and max.
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
        warn: Whether to warn of what is recorded, and of layers that never ran.
        figures: Draw figures at the end of fit, if there is a TensorBoardLogger.
        histograms: Write histograms of each recorded step to TensorBoard.
        table_format: The file's format, "csv" or "parquet".
        console: Show a table of the newest statistics, of the 20 most conspicuous layers if there are more: True, or
            a rich Console. It is redrawn at due steps under a RichProgressBar, and where there is no bar; beside
            tqdm's bar, Lightning's default, it is printed above it at most every ten seconds; without a terminal once,
            at the end.
        name: Tells several monitors of one Trainer apart; letters, digits, "_" and "-". Of several without a name the
            second is called "2", and so on.

    Raises:
        TypeError: If a step or epoch of the schedule is no whole number.
        ValueError: If an argument is out of range; at the start of fit, if a layer has no such unit.
        UnknownNameError: If there is no such mode, format or word of `record`; at the start of fit, if a pattern or
            type matches no layer.
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
        every_n_epochs: int = 0,
        dense_until: int = 0,
        steps: Collection[int] = (),
        record: str | Collection[str] = ("preactivations",),
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
        histograms: bool = True,
        table_format: TableFormat = "csv",
        console: bool | Console = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.settings = MonitorSettings(
            schedule=Schedule(every_n_steps, dense_until, tuple(steps), every_n_epochs),
            record=record,
            percentiles=percentiles,
            units=units,
            probe=probe,
            probe_size=probe_size,
            include=include,
            exclude=exclude,
            layers=layers,
            mode=mode,
            max_elements=max_elements,
            warn=warn,
            figures=figures,
            histograms=histograms,
            table_format=table_format,
            name=name,
        )
        self.name = name
        self.console = console
        self._log = MonitorLog(self.settings.percentiles)
        self._monitoring: Monitoring | None = None
        self._units_before: dict[str, list[int]] = {}

    @property
    def state_key(self) -> str:
        """Tells several monitors of one Trainer apart in its checkpoints."""
        return self.settings.key

    def state_dict(self) -> dict[str, Any]:
        """The units followed, so that a resumed run follows the same ones."""
        units = self._units()
        return {"units": units} if units else {}

    def _units(self) -> dict[str, list[int]]:
        return {} if self._monitoring is None else self._monitoring.units

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the units of the run that is resumed."""
        self._units_before = dict(state_dict.get("units", {}))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and other processes get: settings and rows, without the hooks of a fit that runs."""
        state = {**own_state(self), "_monitoring": None, "_units_before": self._units_before | self._units()}
        # A Console holds a lock, and the stream of this process.
        return state | {"console": self.console is not False}

    def table(self) -> "pandas.DataFrame":
        """What was recorded in the last or the running fit.

        Returns:
            A DataFrame with the columns step, layer, quantity and value. Quantities are `<kind>_mean`, `_var`,
            `_p15` …, `_skewness`, `_kurtosis`, `_min`, `_max`, `_saturated`, `_dead` and `_nonfinite`, where there are
            such; `<kind>` is preactivation, activation or output. `<kind>_gradient_norm`, `_mean`, `_var` and
            `_nonfinite` are those of gradients, `preactivation_unit12_p50` is of a unit.
        """
        return self._log.table()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Find the layers and put hooks on; norms are inserted and the strategy is set up by now."""
        self._stop(trainer)
        name = names_among(trainer, ActivationMonitor)[self]
        settings = self.settings
        options = {"histograms": settings.histograms, "table_format": settings.table_format}
        self._log = MonitorLog(settings.percentiles, name=name, **options)
        summary = None
        if self.console is not False:
            given = None if self.console is True else self.console
            summary = LiveSummary(settings.percentiles, console=given, title=f"ActivationMonitor {name}".rstrip())
        self._monitoring = Monitoring(settings, self._log, summary=summary, units_before=self._units_before)
        self._monitoring.start(trainer, pl_module)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Collect the probe set, once: the training data are there by now."""
        if self._monitoring is not None:
            self._monitoring.collect_probe(trainer, pl_module)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look for changed layers before the epoch's first batch."""
        if self._monitoring is not None:
            self._monitoring.begin_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Record the coming forward if its optimizer step is due; probe single units with the weights of now."""
        if self._monitoring is not None:
            self._monitoring.begin_batch(trainer, pl_module)

    def on_before_backward(self, trainer: "Trainer", pl_module: "LightningModule", loss: Tensor) -> None:
        """Stop recording: gradient checkpointing would show the same activations again."""
        if self._monitoring is not None and self._monitoring.run is not None:
            self._monitoring.run.record(False)

    def on_after_backward(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Go on where a training_step takes several backward passes itself."""
        run = None if self._monitoring is None else self._monitoring.run
        if run is not None and not pl_module.automatic_optimization:
            run.record(True)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's statistics once its optimizer step is taken."""
        if self._monitoring is not None:
            self._monitoring.end_batch(trainer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Know whether the next step would begin an epoch."""
        if self._monitoring is not None and trainer.is_last_batch:
            self._monitoring.end_epoch(trainer.current_epoch)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Write what is left, the file and the figures; take the hooks out."""
        if self._monitoring is not None:
            self._monitoring.end(trainer, pl_module, figures=self.settings.figures)
        self._stop(trainer)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Take the hooks out and keep what was recorded, also on Ctrl-C."""
        self._stop(trainer)
        if self._monitoring is not None and self._monitoring.run is not None:
            self._monitoring.run.write_file(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Take the hooks out."""
        self._stop(trainer)

    def _stop(self, trainer: "Trainer") -> None:
        if self._monitoring is not None:
            self._monitoring.stop(trainer)


__all__ = ["COLUMNS", "ActivationMonitor"]
