"""The log of a monitor whose model may gain and lose layers during a fit."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bn_lightning.callbacks._activation_monitor.layer_changes import continued
from bn_lightning.callbacks._activation_monitor.log import ActivationLog
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.callbacks._activation_monitor.table import ActivationTable
from bn_lightning.functional.activations import ActivationSummary, empty_summary


class _PresentLayers(ActivationTable):
    """A table that takes no rows of layers that are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: frozenset[str] = frozenset()

    def add(self, step: int, layer: str, quantity: str, value: float) -> None:
        if layer not in self.gone:
            super().add(step, layer, quantity, value)


class MonitorLog(ActivationLog):
    """Keeps a place for every layer there ever was, so that those that remain keep their tags.

    Args:
        percentiles: Percentages, ascending.
        options: Further options of `ActivationLog`.

    Attributes:
        newest: The last step added, and each series of it with its summary; None before the first.
    """

    def __init__(self, percentiles: Sequence[float], **options: Any) -> None:
        super().__init__((), percentiles, **options)
        self._options = options
        self._table = self._present = _PresentLayers()
        self._places: tuple[int, ...] = ()
        self._ran: set[tuple[str, str]] = set()
        self.newest: tuple[int, tuple[tuple[Series, ActivationSummary], ...]] | None = None

    @property
    def current(self) -> tuple[Series, ...]:
        """What is recorded now, under the names it has in the table."""
        return tuple(self._series[place] for place in self._places)

    @property
    def never_ran(self) -> dict[str, list[str]]:
        """Layers of now of which not one element was recorded, by kind; gradients may be missing for good reasons."""
        missing: dict[str, list[str]] = {}
        for one in self.current if self.newest is not None else ():
            if (one.kind, one.label) not in self._ran and not one.is_gradient:
                missing.setdefault(one.kind, []).append(one.label)
        return missing

    def change_series(self, series: Sequence[Series]) -> None:
        """Go on with other layers; those that remain keep their names and tags.

        Args:
            series: What is recorded from now on, named by their layers.
        """
        union, self._places = continued(self._series, series)
        grown = ActivationLog(union, self._percentiles, **self._options)
        self._series, self._labels, self._tags = grown._series, grown._labels, grown._tags
        self._present.gone = frozenset(self._labels) - {one.label for one in self.current}
        # Charts are laid out anew, with the layers that came.
        self._laid_out = None

    def add_summaries(self, step: int, summaries: Sequence[ActivationSummary]) -> dict[str, float]:
        """Add a step's statistics of all layers of now.

        Args:
            step: The optimizer step.
            summaries: One for each of `current`.

        Returns:
            The numbers for loggers by tag.
        """
        self.newest = step, tuple(zip(self.current, summaries, strict=True))
        self._ran |= {(one.kind, one.label) for one, summary in self.newest[1] if summary.elements}
        present = dict(zip(self._places, summaries, strict=True))
        every = [present.get(place) or empty_summary(one.channels) for place, one in enumerate(self._series)]
        return super().add_summaries(step, every)

    def add_units(
        self, step: int, followed: Mapping[int, Mapping[int, Sequence[float]]], *, typical: Collection[int] = ()
    ) -> dict[str, float]:
        """Add a step's percentiles of single units.

        Args:
            step: The optimizer step.
            followed: Percentiles by position in `current` and unit.
            typical: Positions whose unit was chosen as the typical one.

        Returns:
            The same numbers by tag, for loggers.
        """
        at = {self._places[index]: units for index, units in followed.items()}
        gone = self._typical.difference(self._places)
        return super().add_units(step, at, typical=gone.union(self._places[index] for index in typical))
