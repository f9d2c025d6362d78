"""What a user asks an activation monitor for, checked at once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from bn_lightning.callbacks._activation_monitor.monitored_layers import LayerChoice
from bn_lightning.callbacks._activation_monitor.table import TableFormat, checked_table_format
from bn_lightning.callbacks._monitor_names import checked_name
from bn_lightning.callbacks._units import Units
from bn_lightning.probes.recorded_kinds import ACTIVATIONS, PREACTIVATIONS, checked_record
from bn_lightning.probes.recorder import Mode, checked_mode
from bn_lightning.probes.recording import checked_percentiles
from bn_lightning.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """The arguments of `ActivationMonitor`, which documents them, in one form each.

    Raises:
        ValueError: If an argument is out of range.
        UnknownNameError: If there is no such mode, word of `record` or format.
    """

    schedule: Schedule
    record: str | Collection[str]
    percentiles: Sequence[float]
    units: Units | Literal["typical"] | None
    probe: Any
    probe_size: int
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    layers: str | type[nn.Module] | Sequence[str | type[nn.Module]]
    mode: Mode
    max_elements: int | None
    warn: bool
    figures: bool
    histograms: bool
    table_format: TableFormat
    name: str

    def __post_init__(self) -> None:
        if self.probe_size < 2:
            raise ValueError(f"A probe set needs two samples or more, got probe_size={self.probe_size}.")
        if self.max_elements is not None and self.max_elements < 1:
            raise ValueError(f"max_elements must be at least 1, or None for all; got {self.max_elements}.")
        checked_name(self.name)
        checked_mode(self.mode)
        checked_table_format(self.table_format)
        units = {"last": "typical"} if self.units == "typical" else dict(self.units or {})
        record = checked_record(self.record, with_outputs=bool(self.layers))
        if units and PREACTIVATIONS not in record:
            raise ValueError(f"units={units} follows pre-activations, which record={self.record!r} leaves out.")
        plain = {"record": record, "percentiles": checked_percentiles(self.percentiles), "units": units}
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def choice(self) -> LayerChoice:
        """Which layers are followed."""
        return LayerChoice(
            nonlinearities=PREACTIVATIONS in self.record or ACTIVATIONS in self.record,
            activations=ACTIVATIONS in self.record,
            include=self.include,
            exclude=self.exclude,
            layers=self.layers,
        )

    @property
    def key(self) -> str:
        """Tells the settings apart in checkpoints, from one release to the next."""
        settings: tuple[object, ...] = (
            self.schedule,
            self.percentiles,
            self.units,
            self.include,
            self.exclude,
            self.max_elements,
        )
        # What came later is left out at its default, so that older checkpoints are found again.
        later = {(): self.layers, "": self.name, "sampled": self.mode, (PREACTIVATIONS,): self.record}
        return f"ActivationMonitor{settings + tuple(now for default, now in later.items() if now != default)!r}"
