"""Two crossed factors: one row a level of the first, one marker a level of the second, published numbers beside."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bn_lightning.analysis.plots.selection import near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, ArmStyle, arm_styles, house_style
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.figure_text import plain_text

Published = Mapping[str, Mapping[str, float]]
SPREAD = 0.5  # of the distance of two rows, taken up by the markers of one


def plot_crossed(
    values: pd.DataFrame,
    *,
    groups: Mapping[str, str],
    series: Mapping[str, str],
    xlabel: str,
    zero: bool = False,
    published: Published | None = None,
    published_xlabel: str = "published",
) -> Figure:
    """Draw the mean over seeds with its 95 % t interval for every pair of two factors' levels.

    Where seeds have no finite value the marker is hollow, stands for the others alone, and says how many are left.

    Args:
        values: One row a run with the columns group, series, seed and value.
        groups: Words by level of the first factor, one row each from top to bottom; those without rows are left out.
        series: Words by level of the second factor, one colour and marker each.
        xlabel: Words for the values, with the unit.
        zero: Draw a line at 0, for differences.
        published: Numbers to compare with, by group and series; they get a panel of their own, for their scale is
            another. Pairs without one are left out.
        published_xlabel: Words for them.

    Returns:
        The figure.

    Raises:
        ValueError: If the table lacks columns or holds none of the groups, or no finite value.

    Example:
        >>> rows = [("relu", name, seed, 0.9 + 0.01 * seed) for name in ("none", "before") for seed in range(3)]
        >>> table = pd.DataFrame(rows, columns=["group", "series", "seed", "value"])
        >>> words = {"none": "without BN", "before": "BN before"}
        >>> figure = plot_crossed(table, groups={"relu": "ReLU"}, series=words, xlabel="accuracy")
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['ReLU']
    """
    missing = [name for name in ("group", "series", "seed", "value") if name not in values.columns]
    if missing:
        raise ValueError(f"A table of group, series, seed and value was expected; this one lacks {', '.join(missing)}.")
    shown = {group: words for group, words in groups.items() if (values["group"] == group).any()}
    if not shown:
        known = near_names(next(iter(groups), ""), values["group"].astype(str))
        raise ValueError(f"None of the groups {', '.join(groups)} has a value: the table holds {known}.")
    if not np.isfinite(values["value"].astype(float)).any():
        raise ValueError(f"None of the {len(values)} values is finite: there is nothing to draw.")
    beside = {group: numbers for group, numbers in (published or {}).items() if group in shown}
    styles = arm_styles(list(series))
    with house_style():
        height = 1.2 + (0.14 + 0.13 * len(series)) * len(shown)
        figure = Figure(figsize=(9.0 if beside else 7.0, height), layout="constrained")
        ratios = [5, 3] if beside else [1]
        axes = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        _draw_values(axes[0], values, list(shown), styles)
        _dress(axes[0], list(shown.values()), xlabel, zero=zero)
        if beside:
            _draw_published(axes[1], beside, list(shown), styles)
            _dress(axes[1], list(shown.values()), published_xlabel, zero=False)
            axes[1].tick_params(axis="y", length=0, labelleft=False)
        # Those without a row keep their colour, but have no place in the legend.
        drawn = {*values["series"], *(name for numbers in beside.values() for name in numbers)}
        handles: list[Artist] = [
            Line2D([], [], ls="", marker=styles[name].marker, color=styles[name].color, ms=7, label=words)
            for name, words in series.items()
            if name in drawn
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    return figure


def _places(group: int, styles: Mapping[str, ArmStyle]) -> dict[str, float]:
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(styles)) if len(styles) > 1 else [0.0]
    return {name: group + float(offset) for name, offset in zip(styles, offsets, strict=True)}


def _draw_values(ax: Axes, values: pd.DataFrame, groups: list[str], styles: Mapping[str, ArmStyle]) -> None:
    for row, group in enumerate(groups):
        for name, place in _places(row, styles).items():
            pair = values[(values["group"] == group) & (values["series"] == name)]
            numbers = pair["value"].to_numpy(dtype=float)
            finite = numbers[np.isfinite(numbers)]
            if not len(finite):
                continue
            interval, style, whole = mean_interval(finite), styles[name], len(finite) == len(numbers)
            if np.isfinite([interval.low, interval.high]).all():
                ax.plot([interval.low, interval.high], [place, place], color=style.color, lw=1.6, gid="interval")
            face = style.color if whole else "white"
            ax.plot([interval.mean], [place], ls="", marker=style.marker, ms=6, color=style.color, mfc=face, gid="mean")
            if not whole:
                ax.annotate(
                    f"{len(finite)} of {len(numbers)}",
                    (interval.mean, place),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize="x-small",
                    color=REFERENCE_COLOR,
                )


def _draw_published(ax: Axes, beside: Published, groups: list[str], styles: Mapping[str, ArmStyle]) -> None:
    for row, group in enumerate(groups):
        for name, place in _places(row, styles).items():
            number = beside.get(group, {}).get(name)
            if number is not None:
                ax.plot([number], [place], ls="", marker=styles[name].marker, ms=6, color=styles[name].color)


def _dress(ax: Axes, names: list[str], xlabel: str, *, zero: bool) -> None:
    if zero:
        ax.axvline(0.0, color=REFERENCE_COLOR, lw=1, ls=(0, (2, 2)), zorder=1)
    ax.set_yticks(range(len(names)), [plain_text(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(xlabel)
    for edge in np.arange(len(names) - 1) + 0.5:
        ax.axhline(edge, color="#EEEEEE", lw=0.8, zorder=0)
