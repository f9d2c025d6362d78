"""How what nonlinearities receive of a probe set shifts in one optimizer step, and has since training began."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._activation_drift import ActivationDrift
from bn_lightning.callbacks._compat import misconfiguration
from bn_lightning.callbacks._example import example_of, run_like
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.errors import NoSiteError
from bn_lightning.probes.covariate_shift_activations import ActivationProbe, Activations
from bn_lightning.surgery.planning import plan_insertion

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer

Numbers = dict[str, dict[str, float]]


class ActivationShift:
    """Finds the nonlinearities of a module before training, and compares what they receive later.

    Runs of the probe set are to be guarded by the caller.

    Args:
        trainer: A Trainer whose fit begins.
        module: Its module; norms are inserted by now.

    Raises:
        MisconfigurationException: If the module would have to be run by a training_step that optimizes manually.
    """

    def __init__(self, trainer: "Trainer", module: "LightningModule") -> None:
        if module.example_input_array is None and not module.automatic_optimization:
            raise misconfiguration(
                trainer,
                f"CovariateShiftMonitor finds the nonlinearities of {type(module).__name__} by running it, and its "
                "training_step optimizes manually. Set example_input_array on the module to a batch of inputs, or "
                "leave activations out with activations=False.",
            )
        example = example_of(trainer, module)
        self._entry = example.entry
        try:
            with no_trace(module):
                self._sites = plan_insertion(module, example.args, example.kwargs, entry=example.entry).sites
        except NoSiteError:
            self._sites = ()
        self._probe: ActivationProbe | None = None
        self._drift: ActivationDrift | None = None
        self._before: Activations = {}

    def attach(
        self,
        module: "LightningModule",
        batches: Sequence[Any],
        *,
        of_training: bool,
        include: str | Sequence[str] | None,
    ) -> None:
        """Take a probe set.

        Args:
            module: The module.
            batches: The probe set.
            of_training: Whether it is of the training data, and not the user's.
            include: fnmatch patterns on the nonlinearities' layers.

        Raises:
            NoSiteError: If there is no nonlinearity to compare.
        """
        forward = run_like(self._entry, of_training=of_training)
        self._probe = ActivationProbe(module, batches, sites=self._sites, forward=forward, include=include)

    def start(self, batches: Sequence[Any], resumed: Mapping[str, Any]) -> None:
        """Let drift be measured from now, or from where the run that is resumed began.

        Args:
            batches: The probe set.
            resumed: What `state_dict` returned in that run; empty for a new one.
        """
        self._drift = ActivationDrift(batches, self._now(), resumed)

    def begin_step(self) -> None:
        """Run the probe set before a step."""
        self._before = self._now()

    def end_step(self) -> tuple[Numbers, ...]:
        """Run the probe set after it.

        Returns:
            Numbers by layer, of the shift and of the drift; nothing where there is nothing to compare.
        """
        if self._probe is None or self._drift is None:
            return ()
        after = self._now()
        return self._probe.shift(self._before, after).numbers(), self._drift.shift(after).numbers("activation_drift")

    def release(self) -> None:
        """Let go of the module and of activations, but for the start: a checkpoint may be saved after training."""
        self._probe, self._before = None, {}

    def state_dict(self) -> dict[str, Any]:
        """The activations at the start of training.

        Returns:
            Tensors and strings only; nothing where none were taken.
        """
        return {} if self._drift is None else self._drift.state_dict()

    def _now(self) -> Activations:
        return {} if self._probe is None else self._probe.activations()
