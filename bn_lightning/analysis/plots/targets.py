"""How soon each arm reaches a target, seed by seed, with those that never did."""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bn_lightning.analysis.plots.selection import Arms, arm_labels
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, ArmStyle, arm_styles, house_style, legend_above, own_axes
from bn_lightning.analysis.targets import median_of_censored

SPREAD = 0.28  # of the distance between two arms: seeds are set apart vertically, in their order


def plot_steps_to_target(
    times: pd.DataFrame,
    *,
    value: str = "steps",
    xlabel: str = "optimizer steps to the target",
    arms: Arms = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw when every seed of every arm reached a target, and the arms' medians.

    A seed that never reached it is right-censored: it is an open arrow at the last step it was observed, pointing to
    where its time must lie. The median counts such a seed as later than all that were observed, so it exists only
    where more than half of the seeds reached the target; elsewhere the note says that it was not reached.

    Args:
        times: One row per cell with the columns arm, seed, `value` and censored; where censored is true the value is
            the last one observed.
        value: The column to draw, such as "steps" or "seconds".
        xlabel: Words for the horizontal axis, with the unit.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes: times to the right, logarithmic where all of them are positive; the first arm on top.

    Raises:
        ValueError: If the table is empty, lacks a column, or has a time that is not finite.

    Example:
        >>> times = pd.DataFrame({"arm": ["none", "before"], "seed": 0, "steps": [500, 60], "censored": [True, False]})
        >>> plot_steps_to_target(times).get_xscale()
        'log'
    """
    missing = [name for name in ("arm", "seed", value, "censored") if name not in times.columns]
    if missing:
        raise ValueError(
            f"A table with the columns arm, seed, {value} and censored was expected; this one lacks "
            f"{', '.join(missing)} and has {', '.join(map(str, times.columns)) or 'none'}."
        )
    if times.empty:
        raise ValueError("The table of times to the target has no rows: there is nothing to draw.")
    finite = np.isfinite(times[value].astype(float))
    if not finite.all():
        first = times[~finite].iloc[0]
        raise ValueError(
            f"Arm {first['arm']!r}, seed {first['seed']} has {value} = {first[value]}; a seed that never reached the "
            "target needs the last value observed, with censored=True."
        )
    labels = arm_labels(times, arms)
    styles = arm_styles(list(labels))
    drawn = [arm for arm in labels if (times["arm"].astype(str) == arm).any()]
    with house_style():
        ax = own_axes(ax, height=1.2 + 0.75 * len(drawn))
        notes = []
        for place, arm in enumerate(drawn):
            of_arm = times[times["arm"].astype(str) == arm].sort_values("seed")
            notes.append(_draw_arm(ax, place, of_arm, value, styles[arm]))
        if times[value].min() > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.08)
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.5g}"))
        ax.set_yticks(range(len(drawn)), [labels[arm] for arm in drawn])
        ax.set_ylim(len(drawn) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.grid(visible=True, axis="x")
        ax.set_xlabel(xlabel)
        right = ax.secondary_yaxis("right")
        right.set_yticks(range(len(drawn)), notes)
        right.tick_params(length=0, colors=REFERENCE_COLOR)
        right.spines["right"].set_visible(False)
        legend_above(ax, handles=_legend(bool(times["censored"].any())))
    return ax


def _draw_arm(ax: Axes, place: int, of_arm: pd.DataFrame, value: str, style: ArmStyle) -> str:
    """Draw one arm and return the note that stands beside it."""
    count = len(of_arm)
    offsets = np.linspace(-SPREAD, SPREAD, count) if count > 1 else np.zeros(1)
    at, censored = of_arm[value].to_numpy(float), of_arm["censored"].to_numpy(bool)
    rows = place + offsets
    ax.plot(
        at[~censored], rows[~censored], ls="", marker=style.marker, ms=4.5, color=style.color, alpha=0.75, gid="seen"
    )
    ax.plot(
        at[censored], rows[censored], ls="", marker=">", ms=5, mfc="none", mew=1.2, color=style.color, gid="censored"
    )
    reached = int((~censored).sum())
    if 2 * reached <= count:
        return f"{reached} of {count} reached it,\nmedian not reached"
    median = median_of_censored(of_arm[value], of_arm["censored"])
    ax.plot([median, median], [place - 0.38, place + 0.38], color=style.color, lw=2.5, gid="median")
    return f"{reached} of {count} reached it,\nmedian {median:,.5g}"


def _legend(any_censored: bool) -> list[Artist]:
    grey = REFERENCE_COLOR
    handles: list[Artist] = [
        Line2D([], [], ls="", marker="o", color=grey, label="one seed"),
        Line2D([], [], ls="", marker="|", ms=12, mew=2.5, color=grey, label="median"),
    ]
    if any_censored:
        handles.append(
            Line2D([], [], ls="", marker=">", mfc="none", color=grey, label="not reached: observed up to here")
        )
    return handles
