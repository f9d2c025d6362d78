"""The rows a monitor has recorded, and what of them goes to the loggers, a file and figures."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._activation_figures import percentile_figures, variance_heatmap
from bn_lightning.callbacks._activation_series import Series
from bn_lightning.callbacks._tensorboard import (
    layer_tags,
    log_folders,
    write_margin_charts,
    write_scalars,
)
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import dead_share, saturated_share
from bn_lightning.probes.recording import percentile_name

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

COLUMNS = ("step", "layer", "quantity", "value")
CSV_NAME = "activations.csv"


class ActivationLog:
    """Collects rows of step, layer, quantity and value, and writes them where asked.

    Args:
        series: What is recorded.
        percentiles: Percentages, ascending.
        name: Of the monitor among several of one Trainer; it is in the file's name, in the tags and in the
            titles of charts, so that none overwrites another's. Empty for the only one, or the first.
    """

    def __init__(self, series: Sequence[Series], percentiles: Sequence[float], *, name: str = "") -> None:
        self._series = tuple(series)
        self._labels = tuple(one.label for one in series)
        self._tags = [tag for _, kind in groupby(self._series, _kind) for tag in layer_tags([s.label for s in kind])]
        self._prefix = f"{name}." if name else ""
        self._suffix = f" ({name})" if name else ""
        self._file = f"activations-{name}.csv" if name else CSV_NAME
        self._percentiles = percentiles
        self._names = [percentile_name(percent) for percent in percentiles]
        self._rows: list[tuple[int, str, str, float]] = []
        self._units: dict[int, list[int]] = {}
        self._typical: frozenset[int] = frozenset()
        self._laid_out: object = None

    def add_summaries(self, step: int, summaries: Sequence[ActivationSummary]) -> dict[str, float]:
        """Add a step's statistics of all layers.

        Args:
            step: The optimizer step.
            summaries: One a layer.

        Returns:
            The same numbers by tag, for loggers; a non-finite count only where it is not 0.
        """
        scalars: dict[str, float] = {}
        for index, (series, summary) in enumerate(zip(self._series, summaries, strict=True)):
            values = {"mean": summary.mean, "var": summary.variance}
            values |= dict(zip(self._names, summary.percentiles(self._percentiles), strict=True))
            values |= {name: value for name, value in _flatness(series, summary).items() if not math.isnan(value)}
            scalars |= self._add(step, index, {f"{series.kind}_{name}": value for name, value in values.items()})
            # One card a layer for each of these would bury the others; they are in the table.
            self._add(step, index, {f"{series.kind}_{name}": value for name, value in _shape(summary).items()})
            nonfinite = self._add(step, index, {f"{series.kind}_nonfinite": float(summary.nonfinite)})
            if summary.nonfinite:
                scalars |= nonfinite
        return scalars

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
                named = dict(zip(self._names, values, strict=True))
                self._add(step, index, {f"{_unit_quantity(unit)}_{name}": value for name, value in named.items()})
                quantity = self._unit_tag(index, unit)
                scalars |= {f"{quantity}_{name}/{self._tags[index]}": value for name, value in named.items()}
        return scalars

    def _add(self, step: int, index: int, values: Mapping[str, float]) -> dict[str, float]:
        self._rows.extend((step, self._labels[index], quantity, value) for quantity, value in values.items())
        return {f"{self._prefix}{quantity}/{self._tags[index]}": value for quantity, value in values.items()}

    def write(self, loggers: Sequence[Any], step: int, scalars: Mapping[str, float]) -> None:
        """Write a step's scalars to all loggers, and lay out TensorBoard's charts of them once.

        Args:
            loggers: The Trainer's loggers, on rank zero.
            step: The optimizer step.
            scalars: Value by tag.
        """
        units = {index: tuple(numbers) for index, numbers in self._units.items()}
        if self._laid_out != units:
            write_margin_charts(loggers, self._charts())
            self._laid_out = units
        write_scalars(loggers, scalars, step)

    def _charts(self) -> dict[str, dict[str, list[str]]]:
        if len(self._names) < 3:
            return {}
        layers: dict[str, dict[str, list[str]]] = {"preactivation": {}, "output": {}}
        for series, tag in zip(self._series, self._tags, strict=True):
            layers[series.kind][tag] = self._margin(f"{self._prefix}{series.kind}", tag)
        units = {
            self._unit_title(index, unit): self._margin(self._unit_tag(index, unit), self._tags[index])
            for index, numbers in sorted(self._units.items())
            for unit in numbers
        }
        return {
            f"pre-activation percentiles{self._suffix}": layers["preactivation"],
            f"output percentiles{self._suffix}": layers["output"],
            f"pre-activation percentiles of single units{self._suffix}": units,
        }

    def _unit_tag(self, index: int, unit: int) -> str:
        return self._prefix + ("preactivation_typical" if index in self._typical else _unit_quantity(unit))

    def _unit_title(self, index: int, unit: int) -> str:
        return f"{self._tags[index]} {'typical unit' if index in self._typical else f'unit {unit}'}"

    def _margin(self, quantity: str, tag: str) -> list[str]:
        middle = self._names[len(self._names) // 2]
        return [f"{quantity}_{name}/{tag}" for name in (middle, self._names[0], self._names[-1])]

    def table(self) -> "pandas.DataFrame":
        """All rows so far, with the columns step, layer, quantity, value."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=list(COLUMNS)).astype({"step": "int64", "value": "float64"})

    def write_csv(self, loggers: Sequence[Any]) -> None:
        """Write the table into every logger's folder, whole or not at all.

        The file is activations.csv, or activations-<name>.csv.

        Rows that a run wrote there which this one resumes, of steps before its first, are kept.
        """
        import pandas as pd

        for folder in log_folders(loggers):
            folder.mkdir(parents=True, exist_ok=True)
            table, path = self.table(), Path(folder) / self._file
            if path.exists() and len(table):
                earlier = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
                table = pd.concat([earlier[earlier["step"] < table["step"].min()], table], ignore_index=True)
            partial = path.with_name(f".{self._file}.{os.getpid()}")
            table.to_csv(partial, index=False)
            partial.replace(path)

    def figures(self) -> dict[str, "Figure"]:
        """Percentile bands of layers and of single units over steps, and the heat map of the variance."""
        table = self.table()
        drawn = table[table["value"].map(math.isfinite)]
        recorded = set(drawn.loc[drawn["quantity"] == "preactivation_var", "layer"])
        layers = [one.label for one in self._series if one.kind == "preactivation" and one.label in recorded]
        if not layers:
            return {}
        options: dict[str, Any] = {"names": self._names, "label": "pre-activation"}
        at = self._prefix
        figures = {f"{at}preactivation_std": variance_heatmap(drawn, layers, quantity="preactivation_var")}
        pages = percentile_figures(drawn, layers, quantity="preactivation", **options)
        figures |= {f"{at}preactivation_percentiles/{page:02d}": figure for page, figure in enumerate(pages)}
        for index, numbers in sorted(self._units.items()):
            for unit in numbers:
                quantity = _unit_quantity(unit)
                if f"{quantity}_{self._names[0]}" not in set(drawn["quantity"]):
                    continue  # not one finite value to draw
                (figure,) = percentile_figures(drawn, [self._labels[index]], quantity=quantity, **options)
                figures[f"{self._unit_tag(index, unit)}/{self._tags[index]}"] = figure
        return figures


def _kind(series: Series) -> str:
    return series.kind


def _flatness(series: Series, summary: ActivationSummary) -> dict[str, float]:
    return {"saturated": saturated_share(summary, series.op), "dead": dead_share(summary, series.op)}


def _shape(summary: ActivationSummary) -> dict[str, float]:
    if not summary.count:
        return {}
    shape = {"skewness": float(summary.layer.skewness()), "kurtosis": float(summary.layer.kurtosis())}
    if summary.extremes is not None:
        shape |= {"min": float(summary.extremes[0].min()), "max": float(summary.extremes[1].max())}
    return shape


def _unit_quantity(unit: int) -> str:
    return f"preactivation_unit{unit}"
