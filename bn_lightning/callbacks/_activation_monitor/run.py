"""What records during one fit: hooks, the window of the due step, single units, the rows and the warnings."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bn_lightning.callbacks._activation_monitor.activation_warnings import ActivationWarnings
from bn_lightning.callbacks._activation_monitor.log import ActivationLog
from bn_lightning.callbacks._activation_monitor.series import places_of
from bn_lightning.callbacks._activation_monitor.step_window import StepWindow
from bn_lightning.callbacks._tensorboard import is_tensorboard, write_figures
from bn_lightning.callbacks._units import UnitFollower
from bn_lightning.probes.norm_lag import RunningStatisticsWatch
from bn_lightning.probes.outputs import Output, OutputTaps
from bn_lightning.probes.visits import receiver_of
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.taps import tap_preactivations

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class ActivationRun:
    """Records one fit, from hooks to loggers.

    Args:
        model: The module that the sites and outputs were found in, not its compiled wrapper.
        sites: Nonlinearities whose pre-activations, activations or both are recorded, visits split.
        outputs: Outputs recorded.
        record: What of `_activation_series.all_series` is recorded.
        window: Which steps are due, and their statistics, in the order of `all_series`.
        log: Takes the rows.
        follower: Follows single units of the sites; None for none.
        warnings: Looks at what was recorded; None for silence.

    Attributes:
        follower: As given.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        outputs: Sequence[Output],
        *,
        record: Collection[str] = ("preactivations",),
        window: StepWindow,
        log: ActivationLog,
        follower: UnitFollower | None,
        warnings: ActivationWarnings | None,
    ) -> None:
        self.follower = follower
        self._window = window
        self._log = log
        self._warnings = warnings
        self._lag = None if warnings is None else RunningStatisticsWatch(model)
        self._scaler: Any = None
        self._ranks = 1
        self._places = places_of(sites, record)
        self._taps = tap_preactivations(
            model,
            sites,
            receiver_of(sites, self.receive),
            receive_activation=receiver_of(sites, self._receive_activation) if "activations" in record else None,
        )
        self._output_taps = OutputTaps(model, outputs, self._receive_output)

    def receive(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        """Take in a pre-activation: into the window while it records, else for the units followed."""
        if not self._window.recorder.recording and self.follower is not None:
            self.follower.receive(layer, index, activation, channel_dim)
        # They come first, so that the index is the place.
        if self._places.preactivations is not None:
            self._take(layer, index, activation, channel_dim)

    def _receive_activation(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        place = self._places.activations[index]
        if place is not None:
            self._take(layer, place, activation, channel_dim)

    def _receive_output(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        self._take(layer, self._places.outputs + index, activation, channel_dim)

    def _take(self, layer: str, place: int, activation: Tensor, channel_dim: int) -> None:
        window = self._window
        if window.recorder.recording:
            window.recorder.receive(layer, place, activation, channel_dim)
        if window.gradients is not None:
            window.gradients.watch(layer, place, activation, channel_dim)

    def begin_batch(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Record the coming forward if its optimizer step is due; probe single units with the weights of now."""
        self._output_taps.begin_forward()
        if self._window.open_if_due(trainer.global_step):
            self._window.record(False)
            self.probe(trainer, module)
            self._output_taps.begin_forward()
            if self._lag is not None:
                self._lag.begin()
            # The one of the Trainer's own precision; a module that scales its loss itself is not seen through.
            self._scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._ranks = trainer.world_size
            self._window.record(True)

    def record(self, on: bool) -> None:
        """Record from now on, if a step is due; or stop, before a backward pass begins."""
        self._window.record(on)
        if not on and self._window.gradients is not None and self._window.step is not None:
            # Ranks average their gradients, so each one's loss counts by its share.
            scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
            self._window.gradients.divide_by(scale * self._ranks)

    def end_batch(self, trainer: "Trainer") -> None:
        """Write the step's statistics once its optimizer step is taken."""
        self._window.record(False)
        self._window.steps.trained()
        if self._window.is_over(trainer.global_step):
            self._write(trainer)

    def end(self, trainer: "Trainer", module: "LightningModule", *, figures: bool) -> None:
        """Write what is left, the file and the figures."""
        if self._window.step is not None:
            self._write(trainer)
        if self._window.steps.due_at_end(trainer.global_step):
            self.probe(trainer, module)
        self.write_file(trainer)
        if figures and trainer.is_global_zero and any(map(is_tensorboard, trainer.loggers)):
            write_figures(trainer.loggers, self._log.figures(), trainer.global_step)

    def write_file(self, trainer: "Trainer") -> None:
        """Write the table into the loggers' folders."""
        if trainer.is_global_zero:
            self._log.write_table(trainer.loggers)

    def probe(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Write the percentiles of the units followed, if there are any."""
        if self.follower is None:
            return
        # Every rank runs it, since a synchronised batch norm waits for all; rank zero's is written.
        step = trainer.global_step
        followed = self.follower.probe(trainer, module)
        scalars = self._log.add_units(step, followed, typical=self.follower.typical)
        if trainer.is_global_zero:
            self._log.write(trainer.loggers, step, scalars)

    def _write(self, trainer: "Trainer") -> None:
        step = self._window.step or 0
        summaries = self._window.close()
        scalars = self._log.add_summaries(step, summaries)
        if self._warnings is not None:
            lags = () if self._lag is None else self._lag.end()
            self._warnings.check(step, summaries, lags=lags, is_loss_scaled=self._scaler is not None)
        if trainer.is_global_zero:
            self._log.write(trainer.loggers, step, scalars)

    def remove(self) -> None:
        """Take the hooks out; a second call does nothing."""
        self._taps.remove()
        self._output_taps.remove()
        if self._window.gradients is not None:
            self._window.gradients.remove()
