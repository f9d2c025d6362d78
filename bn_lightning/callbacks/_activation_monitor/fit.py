"""One fit of an activation monitor: layers found, recorded, and found again where the model changes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from bn_lightning.callbacks._activation_monitor.activation_warnings import ActivationWarnings
from bn_lightning.callbacks._activation_monitor.followed_units import follow_units
from bn_lightning.callbacks._activation_monitor.layer_changes import ModuleTree, unbuilt, what_changed
from bn_lightning.callbacks._activation_monitor.live_summary import LiveSummary
from bn_lightning.callbacks._activation_monitor.monitor_log import MonitorLog
from bn_lightning.callbacks._activation_monitor.monitored_layers import MonitoredLayers
from bn_lightning.callbacks._activation_monitor.run import ActivationRun
from bn_lightning.callbacks._activation_monitor.series import all_series
from bn_lightning.callbacks._activation_monitor.settings import MonitorSettings
from bn_lightning.callbacks._activation_monitor.step_window import StepWindow
from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.callbacks._units import probe_batches
from bn_lightning.errors import NoEffectWarning, StatisticsWarning

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class Monitoring:
    """Records one fit.

    Args:
        settings: What the user asked for.
        log: Takes the rows.
        summary: The table on the console; None for none.
        units_before: Single units by layer that a resumed run follows.

    Attributes:
        run: The hooks that are on, and what they fill; None until there is anything to record.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        log: MonitorLog,
        *,
        summary: LiveSummary | None,
        units_before: Mapping[str, Sequence[int]],
    ) -> None:
        self.run: ActivationRun | None = None
        self._settings = settings
        self._log = log
        self._summary = summary
        self._units_before = dict(units_before)
        self._warnings = ActivationWarnings() if settings.warn else None
        self._window: StepWindow | None = None
        self._tree: ModuleTree | None = None
        self._epoch: int | None = None
        self._looks = True
        self._waits = False
        self._is_off = False
        self._shown: object = None
        self._hidden: set[str] = set()

    @property
    def units(self) -> dict[str, list[int]]:
        """The single units followed, by layer; empty until all are settled."""
        follower = None if self.run is None else self.run.follower
        if follower is None or not all(follower.units.values()):
            return {}
        labels = [one.label for one in self._log.current]
        return {labels[index]: list(units) for index, units in follower.units.items()}

    def start(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Find the layers and put hooks on; say so if there are none.

        Args:
            trainer: The Trainer whose fit begins.
            module: Its LightningModule.
        """
        lazy = unbuilt(module)
        if lazy:
            # Building them here would draw their weights at another place among the random numbers.
            self._waits = True
            rank_zero_warn(
                f"ActivationMonitor begins to record after the first step that has built the lazy layers "
                f"{', '.join(lazy)} of {type(module).__name__}. Run the model on a batch once before fit to have all "
                "steps recorded.",
                category=NoEffectWarning,
            )
            return
        found = self._settings.choice.find(trainer, module)
        self._record(trainer, module, found, lenient=False)
        if self.run is None:
            rank_zero_warn(
                f"ActivationMonitor records nothing: none of the nonlinearities met in {type(module).__name__}."
                f"{found.entry} has a pre-activation made by an affine layer. Check that the example "
                "(example_input_array, or else the first training batch) takes the path with the activations in it, "
                "or name modules whose outputs to record: ActivationMonitor(layers=…).",
                category=NoEffectWarning,
            )
        elif trainer.is_global_zero:
            self._log.warn_of_folders(trainer.loggers)
        # After the example has run: what is lazy is built by it.
        self._tree = ModuleTree(module)

    def begin_epoch(self, epoch: int) -> None:
        """Look for changes of the model before the next batch, when all hooks of the epoch's start have run.

        Args:
            epoch: The epoch.
        """
        self._looks, self._epoch = True, epoch

    def end_epoch(self, epoch: int) -> None:
        """Know that an epoch is complete: what is due at the start of the next may be due at the end of training.

        Args:
            epoch: The epoch.
        """
        if self._window is not None:
            self._window.steps.begin_epoch(epoch + 1)

    def collect_probe(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Collect the probe set, once: the training data are there by now."""
        follower = None if self.run is None else self.run.follower
        if follower is not None and not follower.batches:
            follower.batches = probe_batches(trainer, module, self._settings.probe, self._settings.probe_size)

    def begin_batch(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Record the coming forward if its optimizer step is due; probe single units with the weights of now."""
        if self._waits:
            self._waits = bool(unbuilt(module))
            if not self._waits:
                self.start(trainer, module)
                self.collect_probe(trainer, module)
                # What is compiled already knows nothing of hooks that come now.
                torch.compiler.reset()
        elif self._looks:
            self._looks = False
            if self._tree is not None and not self._tree.is_that_of(module):
                self._find_again(trainer, module)
        if self._window is not None and self._epoch is not None:
            self._window.steps.begin_epoch(self._epoch)
        self._epoch = None
        if self.run is not None and not self._is_off:
            self.run.begin_batch(trainer, module)

    def end_batch(self, trainer: "Trainer") -> None:
        """Write the step's statistics once its optimizer step is taken."""
        if self.run is not None:
            self.run.end_batch(trainer)
            self._show(trainer)

    def end(self, trainer: "Trainer", module: "LightningModule", *, figures: bool) -> None:
        """Write what is left, the file and the figures; name the layers that never ran."""
        if self.run is None:
            return
        self.run.end(trainer, module, figures=figures)
        self._show(trainer)
        never = self._log.never_ran
        never["activation"] = [label for label in never.pop("activation", []) if label not in self._hidden]
        if any(never.values()) and self._settings.warn:
            rank_zero_warn(
                "In none of the recorded steps ActivationMonitor met "
                + "; ".join(f"the {kind} of {', '.join(labels)}" for kind, labels in never.items() if labels)
                + ". The example they were found with takes another path than training does: set example_input_array "
                "to what training runs, or leave the layers out with exclude=….",
                category=StatisticsWarning,
            )

    def stop(self, trainer: "Trainer") -> None:
        """Take the hooks out and leave the table on the console; a second call does nothing."""
        if self.run is not None:
            self.run.remove()
        if self._summary is not None:
            self._summary.close(trainer)

    def _show(self, trainer: "Trainer") -> None:
        newest = self._log.newest
        if self._summary is not None and newest is not None and newest is not self._shown:
            self._shown = newest
            self._summary.show(trainer, *newest)

    def _find_again(self, trainer: "Trainer", module: "LightningModule") -> None:
        before, self._units_before = self._log.current, {**self._units_before, **self.units}
        if self.run is not None:
            self.run.remove()
        if self._window is not None and self._window.step is not None:
            self._window.close()  # a step of two models has no statistics
        step, name = trainer.global_step, type(module).__name__
        try:
            self._record(trainer, module, self._settings.choice.find(trainer, module, lenient=True), lenient=True)
            self.collect_probe(trainer, module)
        except Exception as error:
            if self.run is not None:
                self.run.remove()
            self._record(trainer, module, MonitoredLayers((), (), "forward"), lenient=True)
            rank_zero_warn(
                f"The layers of {name} changed before step {step}, and ActivationMonitor could not find them again: "
                f"{type(error).__name__}: {error} It records nothing from here on; what it has recorded is kept. "
                "If example_input_array no longer fits the module, change it together with the layers.",
                category=NoEffectWarning,
            )
        else:
            if changes := what_changed(before, self._log.current):
                rank_zero_warn(
                    f"The layers of {name} that ActivationMonitor records changed before step {step}: {changes}. The "
                    "others go on under their names.",
                    category=StatisticsWarning,
                )
        self._tree = ModuleTree(module)
        # What was compiled with the hooks that are gone would go on without the new ones.
        torch.compiler.reset()

    def _record(self, trainer: "Trainer", module: "LightningModule", found: MonitoredLayers, *, lenient: bool) -> None:
        """Put hooks on what was found, behind what was recorded before."""
        settings, earlier = self._settings, self.run
        self._log.change_series(all_series(found.sites, found.outputs, settings.record))
        if self._warnings is not None:
            self._warnings.change_series(self._log.current)
        self._is_off = not self._log.current
        if self._is_off:
            if earlier is not None:  # it still writes the file and the figures
                earlier.follower = None
            return
        labels = [one.label for one in self._log.current]
        follower = None
        if settings.units:
            follower = follow_units(settings, trainer, module, found, labels, self._units_before, lenient=lenient)
        if follower is not None and earlier is not None and earlier.follower is not None:
            follower.batches = earlier.follower.batches
        window = StepWindow(
            settings.schedule,
            [one.channels for one in self._log.current],
            max_elements=settings.max_elements,
            device=module.device,
            mode=settings.mode,
            gradients=sum(one.is_gradient for one in self._log.current),
        )
        if self._window is not None:
            window.follow(self._window)
        self.run = ActivationRun(
            getattr(module, "_orig_mod", module),
            found.sites,
            found.outputs,
            record=settings.record,
            window=window,
            log=self._log,
            follower=follower,
            warnings=self._warnings,
        )
        self._window = window
        new = [label for label in found.hidden if label not in self._hidden]
        self._hidden.update(new)
        if new:
            rank_zero_warn(
                f"ActivationMonitor cannot see what the nonlinearities behind {', '.join(new)} return, and records no "
                "activations of them: they are written with other functions. Name modules that return them instead: "
                "ActivationMonitor(layers=…).",
                category=NoEffectWarning,
            )
