"""A metric over steps, one curve per arm."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter
from scipy import stats

from bn_lightning.analysis.plots.selection import Arms, arm_labels, select_quantity, steps_by_seed
from bn_lightning.analysis.plots.style import (
    BAND_ALPHA,
    REFERENCE_COLOR,
    SEED_ALPHA,
    ArmStyle,
    arm_styles,
    house_style,
    legend_above,
    own_axes,
)

LEVEL = 0.95


def plot_curves(
    results: pd.DataFrame,
    quantity: str,
    *,
    layer: str = "",
    target: float | None = None,
    arms: Arms = None,
    log_x: bool = False,
    log_y: bool = False,
    seeds: bool = True,
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw one quantity over optimizer steps: its mean over seeds with a 95 % t interval, per arm.

    The band is $\bar x \pm t_{0.975, n-1} s / \sqrt n$ at every step on its own, for $n$ seeds with the unbiased
    standard deviation $s$; it says how well the mean is known, not how far single seeds scatter, and holds for roughly
    normal values. Mean and band are drawn only where *every* seed of the arm has a finite value, because a mean over
    the surviving seeds would hide those that diverged. Where a seed has no further finite value its line ends in a
    cross, and the legend's title counts such seeds.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        quantity: Name of the quantity, such as "test_accuracy".
        layer: Path of the layer, empty for a quantity of the whole model.
        target: Draw this value as a horizontal line.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        log_x: Logarithmic steps; step 0 keeps a place at the left end (linear up to the first step after it).
        log_y: Logarithmic values; values that are not positive cannot be shown.
        seeds: Draw single seeds as thin lines behind the mean.
        ylabel: Words for the vertical axis; by default the quantity's name with spaces.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds no such quantity, or no finite value of it.

    Example:
        >>> rows = [("none", seed, step, "", "loss", 1 / (1 + step + seed)) for seed in range(3) for step in range(4)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> plot_curves(table, "loss").get_xlabel()
        'optimizer step'
    """
    rows = select_quantity(results, quantity, layer=layer)
    if not np.isfinite(rows["value"].astype(float)).any():
        raise ValueError(f"None of the {len(rows)} values of {quantity!r} is finite: there is no curve to draw.")
    labels = arm_labels(rows, arms)
    styles = arm_styles(list(labels))
    tables = {arm: table for arm in labels if not (table := steps_by_seed(rows, arm)).empty}
    last_step = max(int(table.index[-1]) for table in tables.values())
    handles: list[Artist] = []
    early: list[str] = []
    with house_style():
        ax = own_axes(ax, height=4.0 + 0.18 * (len(tables) // 3))
        for arm, table in tables.items():
            ended = _draw_arm(ax, table, styles[arm], seeds=seeds, last_step=last_step)
            if ended:
                early.append(f"{labels[arm]} {ended} of {table.shape[1]}")
            handles.append(Line2D([], [], color=styles[arm].color, ls=styles[arm].dash, lw=2, label=labels[arm]))
        if target is not None:
            line = ax.axhline(target, color=REFERENCE_COLOR, lw=1, ls=(0, (2, 2)), label=f"target {target:g}", zorder=1)
            handles.append(line)
        _scale_axes(ax, tables.values(), log_x=log_x, log_y=log_y)
        ax.set_xlabel("optimizer step")
        ax.set_ylabel(ylabel or quantity.replace("_", " "))
        title = _what_is_drawn([table.shape[1] for table in tables.values()])
        legend_above(
            ax, title="\n× seeds that end early: ".join([title, *[", ".join(early)] * bool(early)]), handles=handles
        )
    return ax


def _draw_arm(ax: Axes, table: pd.DataFrame, style: ArmStyle, *, seeds: bool, last_step: int) -> int:
    """Draw one arm and return how many of its seeds have no finite value at the last step."""
    steps, values = table.index.to_numpy(), table.to_numpy()
    count = values.shape[1]
    complete = np.isfinite(values).all(axis=1)
    if count > 1:
        mean = np.where(complete, values.mean(axis=1), np.nan)
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(axis=1, ddof=1) / np.sqrt(count)
        ax.fill_between(
            steps, mean - half, mean + half, where=complete, color=style.color, alpha=BAND_ALPHA, lw=0, gid="interval"
        )
        ax.plot(steps, mean, color=style.color, ls=style.dash, lw=2, gid="mean", zorder=3)
    ended = 0
    for column in values.T:
        # Without its mean an arm would be invisible just where something went wrong: there the seeds speak.
        shown = column if seeds or count == 1 else np.where(_with_neighbours(~complete), column, np.nan)
        single: dict[str, Any] = (
            {"ls": style.dash, "lw": 2, "zorder": 3} if count == 1 else {"lw": 0.7, "alpha": SEED_ALPHA}
        )
        if np.isfinite(shown).any():
            ax.plot(steps, shown, color=style.color, gid="seed", **single)
        finite = np.flatnonzero(np.isfinite(column))
        if not len(finite) or steps[finite[-1]] < last_step:
            ended += 1
            end = finite[-1:]
            ax.plot(steps[end], column[end], color=style.color, marker="x", ms=7, mew=2, ls="", gid="end", zorder=4)
    return ended


def _with_neighbours(mask: np.ndarray) -> np.ndarray:
    return mask | np.append(mask[1:], False) | np.append(False, mask[:-1])


def _scale_axes(ax: Axes, tables: Collection[pd.DataFrame], *, log_x: bool, log_y: bool) -> None:
    steps = np.unique(np.concatenate([table.index.to_numpy() for table in tables]))
    positive = steps[steps > 0]
    if log_x and len(positive):
        if steps[0] <= 0:
            ax.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.3)
            ax.xaxis.set_minor_locator(NullLocator())
            decades = [m * 10**e for e in range(12) for m in (1, 2, 5)]
            ax.set_xticks([0, *(tick for tick in decades if positive[0] <= tick <= steps[-1])])
        else:
            ax.set_xscale("log")
    if len(steps) > 1:
        ax.set_xlim(float(steps[0]), float(steps[-1]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log_y:
        ax.set_yscale("log")


def _what_is_drawn(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    if high == 1:
        return "one seed per arm: no interval"
    number = f"{high}" if low == high else f"{low} to {high}"
    return f"mean over {number} seeds, band: {LEVEL:.0%} t interval".replace("%", " %")
