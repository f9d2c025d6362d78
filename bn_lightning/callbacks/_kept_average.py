"""The running average of a module's norms, kept while population statistics stand in its place."""

from typing import Any

from torch import nn

from bn_lightning.surgery.statistics.running_statistics import (
    Statistics,
    holds_statistics,
    statistics_of,
    write_statistics,
)


class KeptAverage:
    """Keeps the running average that training goes on with, and knows which statistics a checkpoint carries.

    Attributes:
        step: Optimizer step whose population statistics stand in its place; -1 where none did.
        in_module: Whether the module itself holds them, and not only the average of weights that is kept beside it.

    Example:
        >>> norm, kept = nn.BatchNorm1d(1), KeptAverage()
        >>> average = kept.running_of(norm)
        >>> _ = norm.running_mean.fill_(5.0)
        >>> kept.keep(average, norm, step=7)
        >>> kept.put_back(norm)
        >>> norm.running_mean.tolist(), bool(kept)
        ([0.0], False)
    """

    def __init__(self) -> None:
        self.step = -1
        self.in_module = True
        self._running: Statistics = {}
        self._population: Statistics = {}

    def __bool__(self) -> bool:
        return bool(self._running)

    @property
    def is_of_checkpoint(self) -> bool:
        """Whether what is kept, if anything, came from a checkpoint, so that what stands in its place is not known."""
        return not self._population

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and the step.

        Returns:
            Plain tensors and numbers.
        """
        return {"running": self._running, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint holds.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._running, self._population, self.step = state_dict["running"], {}, state_dict["step"]

    def running_of(self, module: nn.Module) -> Statistics:
        """The running average: what is kept of it, or else what the module holds."""
        return self._running or statistics_of(module)

    def keep(self, running: Statistics, module: nn.Module, *, step: int) -> None:
        """Keep the running average, now that population statistics are in its place.

        Args:
            running: What `running_of` returned before.
            module: Holds the population statistics.
            step: Optimizer step that they are of.
        """
        self._running, self._population, self.step = running, statistics_of(module), step

    def forget_if_changed(self, module: nn.Module) -> None:
        """Drop what is kept where it is not the module's: of another one, or of other weights."""
        if self._running and not holds_statistics(module, self._population):
            self._running, self._population, self.step = {}, {}, -1

    def put_back(self, module: nn.Module) -> None:
        """End what stands in its place: training goes on with the running average."""
        # StochasticWeightAveraging resets the norms before its last epoch.
        if not self._population or holds_statistics(module, self._population):
            write_statistics(module, self._running)
        self._running, self._population = {}, {}

    def write_running(self, module: nn.Module) -> None:
        """Write the running average into a module that shares it, and keep it."""
        write_statistics(module, self._running)

    def write_population(self, module: nn.Module) -> None:
        """Write what stands in its place into the module itself."""
        write_statistics(module, self._population)
        self.in_module = True

    def mark(self, checkpoint: dict[str, Any], estimator: str) -> None:
        """Say in a checkpoint which statistics it carries.

        Args:
            checkpoint: Gets the entry `bn_lightning_statistics`.
            estimator: Of the population statistics.
        """
        # With save_weights_only no callback is asked, so the weights are those of training, not their average.
        carried = bool(self) and (self.in_module or "callbacks" in checkpoint)
        checkpoint["bn_lightning_statistics"] = {
            "kind": "population" if carried else "running",
            "estimator": estimator,
            "global_step": self.step if carried else checkpoint["global_step"],
        }
