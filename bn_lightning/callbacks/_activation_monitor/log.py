"""The rows a monitor has recorded, and what of them goes to the loggers, a file and figures."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._activation_monitor.drawing import draw
from bn_lightning.callbacks._activation_monitor.figures import percentile_figures
from bn_lightning.callbacks._activation_monitor.histograms import write_histograms
from bn_lightning.callbacks._activation_monitor.history import DistributionHistory
from bn_lightning.callbacks._activation_monitor.layout import KINDS, LayerTags, is_gradient, whole_network
from bn_lightning.callbacks._activation_monitor.quantities import quantities
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.callbacks._activation_monitor.table import (
    COLUMNS,
    ActivationTable,
    TableFormat,
    unwritable,
    write_tables,
)
from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.callbacks._tensorboard import (
    Chart,
    layer_tags,
    log_folders,
    remote_folders,
    tensorboard_writers,
    write_charts,
    write_scalars,
)
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.probes.recording import percentile_name

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class ActivationLog:
    """Collects rows of step, layer, quantity and value, and writes them where asked.

    Args:
        series: What is recorded.
        percentiles: Percentages, ascending.
        name: Of the monitor among several of one Trainer; it is in the file's name, in the tags and in the
            titles of charts, so that none overwrites another's. Empty for the only one, or the first.
        histograms: Whether TensorBoard gets a histogram of each series and step.
        table_format: Of the file that the rows are written to, "csv" or "parquet".
    """

    def __init__(
        self,
        series: Sequence[Series],
        percentiles: Sequence[float],
        *,
        name: str = "",
        histograms: bool = True,
        table_format: TableFormat = "csv",
    ) -> None:
        self._series = tuple(series)
        self._labels = tuple(one.label for one in series)
        self._tags = [tag for _, kind in groupby(self._series, _kind) for tag in layer_tags([s.label for s in kind])]
        self._prefix = f"{name}." if name else ""
        self._suffix = f" ({name})" if name else ""
        self._file = f"activations{f'-{name}' if name else ''}.{table_format}"
        self._percentiles = tuple(percentiles)
        self._names = [percentile_name(percent) for percent in percentiles]
        self._histograms = histograms
        self._table, self._history = ActivationTable(), DistributionHistory()
        self._units: dict[int, list[int]] = {}
        self._typical: frozenset[int] = frozenset()
        self._network = LayerTags()
        self._laid_out: object = None
        self._unwritten: tuple[int, Sequence[ActivationSummary]] = (0, ())

    def add_summaries(self, step: int, summaries: Sequence[ActivationSummary]) -> dict[str, float]:
        """Add a step's statistics of all layers.

        Args:
            step: The optimizer step.
            summaries: One a series.

        Returns:
            The numbers for loggers by tag; a non-finite count only where it is not 0, and shape and extremes only
            in the table.
        """
        scalars: dict[str, float] = {}
        distributions = {}
        for series, tag, summary in zip(self._series, self._tags, summaries, strict=True):
            found = quantities(series, summary, self._percentiles)
            for name, value in (found.logged | found.told).items():
                self._table.add(step, series.label, f"{series.kind}_{name}", value)
            kind = f"{self._prefix}{series.kind}"
            scalars |= {f"{kind}_{name}/{tag}": value for name, value in found.logged.items()}
            self._network.add(series.kind, tag, found.logged)
            if found.quantiles:
                distributions[_key(series)] = found.quantiles
        self._history.add(step, distributions)
        # Histograms are for rank zero, which alone writes.
        self._unwritten = (step, summaries)
        return scalars | {f"{self._prefix}{tag}": value for tag, value in self._network.ranges().items()}

    def add_units(
        self, step: int, followed: Mapping[int, Mapping[int, Sequence[float]]], *, typical: Collection[int] = ()
    ) -> dict[str, float]:
        """Add a step's percentiles of single units.

        Args:
            step: The optimizer step.
            followed: Percentiles by position of the layer and unit.
            typical: Positions whose unit was chosen as the typical one. Each run chooses its own, so their tags
                bear no number: TensorBoard then draws all runs in one chart. Rows always bear it.

        Returns:
            The same numbers by tag, for loggers.
        """
        scalars: dict[str, float] = {}
        self._typical = frozenset(typical)
        for index, units in followed.items():
            self._units[index] = list(units)
            for unit, values in units.items():
                for name, value in zip(self._names, values, strict=True):
                    self._table.add(step, self._labels[index], f"{_unit_quantity(unit)}_{name}", value)
                    scalars[f"{self._unit_tag(index, unit)}_{name}/{self._tags[index]}"] = value
        return scalars

    def write(self, loggers: Sequence[Any], step: int, scalars: Mapping[str, float]) -> None:
        """Write a step's scalars to all loggers, its histograms to TensorBoard, and lay out the charts of them once.

        Args:
            loggers: The Trainer's loggers, on rank zero.
            step: The optimizer step.
            scalars: Value by tag.
        """
        shown = (self._network.count, {index: tuple(numbers) for index, numbers in self._units.items()})
        if self._laid_out != shown:
            write_charts(loggers, self._charts())
            self._laid_out = shown
        write_scalars(loggers, scalars, step)
        (at, summaries), self._unwritten = self._unwritten, (0, ())
        writers = tensorboard_writers(loggers) if self._histograms else []
        if summaries and writers:
            kinds = [(f"{self._prefix}{one.kind}", tag) for one, tag in zip(self._series, self._tags, strict=True)]
            write_histograms(writers, zip(kinds, summaries, strict=True), at)

    def _charts(self) -> dict[str, dict[str, Chart]]:
        charts = whole_network(self._network, prefix=self._prefix, suffix=self._suffix)
        if len(self._names) < 3:
            return charts
        for kind, title in KINDS.items():
            charts[f"{title[:-1]} percentiles{self._suffix}"] = {
                tag: self._margin(f"{self._prefix}{kind}", tag)
                for series, tag in zip(self._series, self._tags, strict=True)
                if series.kind == kind and not is_gradient(kind)
            }
        charts[f"pre-activation percentiles of single units{self._suffix}"] = {
            self._unit_title(index, unit): self._margin(self._unit_tag(index, unit), self._tags[index])
            for index, numbers in sorted(self._units.items())
            for unit in numbers
        }
        return charts

    def _unit_tag(self, index: int, unit: int) -> str:
        return self._prefix + ("preactivation_typical" if index in self._typical else _unit_quantity(unit))

    def _unit_title(self, index: int, unit: int) -> str:
        return f"{self._tags[index]} {'typical unit' if index in self._typical else f'unit {unit}'}"

    def _margin(self, quantity: str, tag: str) -> Chart:
        middle = self._names[len(self._names) // 2]
        return Chart(tuple(f"{quantity}_{name}/{tag}" for name in (middle, self._names[0], self._names[-1])), True)

    def table(self) -> "pandas.DataFrame":
        """All rows so far, with the columns step, layer, quantity, value."""
        return self._table.frame()

    def warn_of_folders(self, loggers: Sequence[Any]) -> None:
        """Warn of folders that will not take the table, before anything is recorded.

        Args:
            loggers: The Trainer's loggers, on rank zero.
        """
        remote = [f"{address}: files are written to local folders only" for address in remote_folders(loggers)]
        _warn_unwritten(self._file, remote + unwritable(log_folders(loggers)))

    def write_table(self, loggers: Sequence[Any]) -> None:
        """Write the table into every logger's folder, whole or not at all; a folder that refuses is warned of.

        The file is activations.csv, or activations-<name>.csv, or ends with .parquet.

        Rows that a run wrote there which this one resumes, of steps before its first, are kept.

        Args:
            loggers: The Trainer's loggers, on rank zero.
        """
        _warn_unwritten(self._file, write_tables(self.table(), log_folders(loggers), self._file))

    def figures(self) -> dict[str, "Figure"]:
        """Heat maps, percentile bands, ridge lines and the depth figures of what was recorded.

        Returns:
            Figure by tag.
        """
        figures: dict[str, Figure] = {}
        table = self.table()
        table = table[table["value"].map(math.isfinite)]
        recorded = set(zip(table["quantity"], table["layer"], strict=True))
        for kind, of in KINDS.items():
            layers = [one for one in self._series if one.kind == kind and (f"{kind}_var", one.label) in recorded]
            history = {one.label: self._history.of(_key(one)) for one in layers}
            drawn = draw(table, list(history), history, kind=kind, of=of, names=self._names)
            figures |= {f"{self._prefix}{tag}": figure for tag, figure in drawn.items()}
        for index, numbers in sorted(self._units.items()):
            for unit in numbers:
                quantity, layer = _unit_quantity(unit), self._labels[index]
                if (f"{quantity}_{self._names[0]}", layer) not in recorded:
                    continue  # not one finite value to draw
                options: dict[str, Any] = {"names": self._names, "label": "pre-activation"}
                (figure,) = percentile_figures(table, [layer], quantity=quantity, **options)
                figures[f"{self._unit_tag(index, unit)}/{self._tags[index]}"] = figure
        return figures


def _warn_unwritten(file: str, reasons: Sequence[str]) -> None:
    if reasons:
        rank_zero_warn(
            f"ActivationMonitor cannot write {file}: {'; '.join(reasons)}. Nothing is lost while the process runs: "
            "table() of the monitor holds all rows. Give the logger a folder that can be written to, or save "
            "monitor.table() yourself."
        )


def _kind(series: Series) -> str:
    return series.kind


def _key(series: Series) -> str:
    return f"{series.kind}/{series.label}"


def _unit_quantity(unit: int) -> str:
    return f"preactivation_unit{unit}"


__all__ = ["COLUMNS", "ActivationLog"]
