"""A number over one factor, a line per level of a second, a panel per level of a third."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_lightning.analysis.plots.selection import near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, ArmStyle, arm_styles, house_style
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.figure_text import plain_text

SPREAD = 0.36  # of the distance of two levels, taken up by the markers of one


def plot_factor_lines(
    table: pd.DataFrame,
    *,
    x: str,
    line: str,
    lines: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    panel: str | None = None,
    panels: Mapping[str, str] | None = None,
    zero: bool = False,
    log_y: bool = False,
    share_y: bool = True,
) -> Figure:
    """Draw the mean over seeds with its 95 % interval at every level of a factor, joined by lines.

    Levels of `x` stand at even distances, with the lines side by side. Where a seed has no finite value the marker is
    hollow and stands for the others alone.

    Args:
        table: One row a run and level with the columns of the factors, seed and value.
        x: Factor along the horizontal axis, its levels in ascending order.
        line: Factor of the lines.
        lines: Words by level, in order; their places fix the colours. Those without rows are left out.
        xlabel: Words for the horizontal axis, with the unit.
        ylabel: Words for the value.
        panel: Factor of the panels; one panel when None.
        panels: Titles by level of that factor, in order.
        zero: Draw a line at 0, for differences.
        log_y: Logarithmic values.
        share_y: Whether all panels have one scale.

    Returns:
        The figure.

    Raises:
        ValueError: If the table lacks a column, holds none of the lines or panels, or no finite value of them.

    Example:
        >>> rows = [("none", size, seed, 0.9 + 0.01 * seed) for size in (2, 512) for seed in range(3)]
        >>> table = pd.DataFrame(rows, columns=["norm", "size", "seed", "value"])
        >>> options = {"x": "size", "line": "norm", "lines": {"none": "without BN"}}
        >>> figure = plot_factor_lines(table, **options, xlabel="batch size", ylabel="accuracy")
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['2', '512']
    """
    missing = [name for name in (x, line, panel, "seed", "value") if name and name not in table.columns]
    if missing:
        raise ValueError(f"A table of factors, seed and value was expected; this one lacks {', '.join(missing)}.")
    titles = {level: words for level, words in (panels or {}).items() if panel and (table[panel] == level).any()}
    rows = table[table[line].isin(list(lines)) & (table[panel].isin(list(titles)) if panel else True)]
    rows = rows.assign(value=rows["value"].astype(float))
    if rows.empty:
        known = near_names(next(iter(lines), ""), table[line].astype(str))
        raise ValueError(f"None of the lines {', '.join(lines)} has a value: the table holds {known}.")
    if not np.isfinite(rows["value"]).any():
        raise ValueError(f"None of the {len(rows)} values is finite: there is nothing to draw.")
    levels, styles = sorted(rows[x].unique()), arm_styles(list(lines))
    drawn = [name for name in lines if (rows[line] == name).any()]
    with house_style():
        count = max(1, len(titles))
        figure = Figure(figsize=(2.2 + 4.0 * count if count > 1 else 7.0, 3.9), layout="constrained")
        axes = figure.subplots(1, count, sharey=share_y, squeeze=False)[0]
        for ax, level in zip(axes, titles or {"": ""}, strict=True):
            part = rows[rows[panel] == level] if panel else rows
            offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(drawn)) if len(drawn) > 1 else [0.0]
            for name, offset in zip(drawn, offsets, strict=True):
                _draw_line(ax, part[part[line] == name], x, levels, float(offset), styles[name], lines[name])
            _dress(ax, levels, zero=zero, log_y=log_y)
            ax.set_title(titles.get(level, ""), color=REFERENCE_COLOR)
            ax.set_xlabel(xlabel)
        axes[0].set_ylabel(ylabel)
        handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        columns = min(len(handles), 4)
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=columns, frameon=False)
    return figure


def _draw_line(
    ax: Axes, rows: pd.DataFrame, x: str, levels: list[float], offset: float, style: ArmStyle, words: str
) -> None:
    found = []
    for number, level in enumerate(levels):
        values = rows.loc[rows[x] == level, "value"].to_numpy(dtype=float)
        finite = values[np.isfinite(values)]
        if len(finite):
            found.append((number + offset, mean_interval(finite), len(finite) == len(values)))
    if not found:
        return
    ax.plot(
        [place for place, _, _ in found],
        [interval.mean for _, interval, _ in found],
        color=style.color,
        ls=style.dash,
        lw=1.4,
        marker=style.marker,
        ms=6,
        gid="mean",
        label=plain_text(words),
    )
    for place, interval, whole in found:
        if np.isfinite([interval.low, interval.high]).all():
            ax.plot([place, place], [interval.low, interval.high], color=style.color, lw=1.4, gid="interval")
        if not whole:
            ax.plot([place], [interval.mean], ls="", marker=style.marker, ms=6, color=style.color, mfc="white")


def _dress(ax: Axes, levels: list[float], *, zero: bool, log_y: bool) -> None:
    if zero:
        ax.axhline(0.0, color=REFERENCE_COLOR, lw=1, ls=(0, (2, 2)), zorder=1)
    if log_y:
        ax.set_yscale("log")
    # More labels than this run into each other.
    every = -(-len(levels) // 10)
    ax.set_xticks(range(0, len(levels), every), [f"{level:,g}" for level in levels[::every]])
