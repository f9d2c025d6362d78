"""A number by two factors, one heat map per level of a third."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bn_lightning.analysis.plots.selection import near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, house_style

GREY = "#C9C9C9"


def plot_factor_maps(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    panel: str,
    panels: Mapping[str, str],
    words: Mapping[str, str],
    label: str,
    bounds: tuple[float, float] | None = None,
    columns: int = 2,
) -> Figure:
    """Draw the mean over seeds at every pair of two factors' levels, as a number and a colour.

    All panels share one scale of colours, which runs evenly from dark to light, so it reads in grey too. A mean is over
    seeds with a finite value; where some have none a star says so, and where all have none the field is grey with a
    cross.

    Args:
        table: One row a run with a column for each factor, and value.
        x: Factor of the columns, its levels in ascending order.
        y: Factor of the rows, in ascending order from below.
        panel: Factor of the panels.
        panels: Titles by level of that factor, in order; those without rows are left out.
        words: Words for the two factors.
        label: Words for the value.
        bounds: Ends of the colour scale; by default those of the values.
        columns: Panels side by side.

    Returns:
        The figure.

    Raises:
        ValueError: If the table lacks a column, holds none of the panels, or no finite value.

    Example:
        >>> rows = [("none", rate, depth, rate * depth) for rate in (0.1, 1.0) for depth in (3, 30)]
        >>> table = pd.DataFrame(rows, columns=["norm", "rate", "depth", "value"])
        >>> options = {"x": "rate", "y": "depth", "panel": "norm", "panels": {"none": "no norm"}}
        >>> figure = plot_factor_maps(table, **options, words={"rate": "rate", "depth": "layers"}, label="product")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['3.00', '30.00', '0.30', '3.00']
    """
    missing = [name for name in (x, y, panel, "value") if name not in table.columns]
    if missing:
        raise ValueError(f"A table with the columns {x}, {y}, {panel} and value was expected; it lacks {missing}.")
    shown = {level: title for level, title in panels.items() if (table[panel] == level).any()}
    if not shown:
        known = near_names(next(iter(panels), ""), table[panel].astype(str))
        raise ValueError(f"None of the panels {', '.join(panels)} has a value: the table holds {known}.")
    rows = table[table[panel].isin(list(shown))].assign(value=lambda part: part["value"].astype(float))
    means = rows[np.isfinite(rows["value"])].groupby([panel, y, x])["value"].mean()
    if means.empty:
        raise ValueError(f"None of the {len(rows)} values is finite: there is nothing to draw.")
    low, high = bounds or (float(means.min()), float(means.max()))
    across, down = sorted(rows[x].unique()), sorted(rows[y].unique(), reverse=True)
    count = min(columns, len(shown))
    lines = -(-len(shown) // count)
    with house_style():
        size = (1.4 + count * (0.7 + 0.58 * len(across)), 1.0 + lines * (0.7 + 0.36 * len(down)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, count, squeeze=False, sharex=True, sharey=True)
        colors = sns.color_palette("mako", as_cmap=True)
        for (level, title), ax in zip(shown.items(), axes.flat, strict=False):
            runs = rows[rows[panel] == level]
            values = _grid(runs[np.isfinite(runs["value"])], "mean", x, y, across, down)
            lost = _grid(runs.assign(value=~np.isfinite(runs["value"])), "sum", x, y, across, down).fillna(0)
            notes = [
                [f"{value:.2f}{'*' if gone else ''}" for value, gone in zip(*both, strict=True)]
                for both in zip(values.to_numpy(), lost.to_numpy(), strict=True)
            ]
            sns.heatmap(
                values,
                ax=ax,
                cmap=colors,
                vmin=low,
                vmax=high,
                annot=np.array(notes),
                fmt="",
                cbar=False,
                linewidths=0.6,
                linecolor="white",
                mask=values.isna(),
                annot_kws={"fontsize": "small"},
            )
            ax.set_facecolor(GREY)
            for row, column in zip(*np.nonzero(values.isna().to_numpy() & (lost.to_numpy() > 0)), strict=True):
                ax.text(column + 0.5, row + 0.5, "×", ha="center", va="center", color="#222222")
            ax.grid(visible=False)
            ax.set_title(title, color=REFERENCE_COLOR)
            ax.set_xticks(np.arange(len(across)) + 0.5, [_level(one) for one in across], rotation=0)
            ax.set_yticks(np.arange(len(down)) + 0.5, [_level(one) for one in down], rotation=0)
            ax.tick_params(length=0)
            ax.set(xlabel="", ylabel="")
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        figure.supxlabel(words[x], fontsize="medium")
        figure.supylabel(words[y], fontsize="medium")
        bar = figure.colorbar(ScalarMappable(Normalize(low, high), colors), ax=axes, pad=0.02, label=label)
        bar.outline.set_visible(False)
    return figure


def _grid(rows: pd.DataFrame, how: str, x: str, y: str, across: list[object], down: list[object]) -> pd.DataFrame:
    table = rows.groupby([y, x])["value"].agg(how).unstack()
    return table.reindex(index=down, columns=across).astype(float)


def _level(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
