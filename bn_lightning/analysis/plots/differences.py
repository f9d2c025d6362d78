"""Paired differences to the reference arm with their intervals, one row each: a forest plot."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bn_lightning.analysis.plots.selection import Arms, arm_labels, near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, arm_styles, house_style, own_axes


def plot_differences(
    comparisons: pd.DataFrame,
    *,
    quantity: str | None = None,
    estimate: str = "estimate",
    low: str = "low",
    high: str = "high",
    reference: str | None = None,
    ratio: bool | None = None,
    xlabel: str | None = None,
    arms: Arms = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far each arm lies from the reference, with the interval of the paired difference.

    A row whose interval is missing (a single pair of seeds, or censored ones) shows its estimate as an open marker
    without a bar, and says so; a row without an estimate keeps its place and says "not estimable".

    Args:
        comparisons: One row per compared arm, with the columns arm, `estimate`, `low` and `high`.
        quantity: Take the rows whose column quantity says so; needed where the table compares several.
        estimate: Column of the estimated difference, or ratio.
        low: Column of the interval's lower end.
        high: Column of its upper end.
        reference: Name of the arm that the others are compared with; used in the axis' words.
        ratio: The values are ratios: a logarithmic axis, and "no difference" at 1 in place of 0. By default what the
            column kind says, where there is one.
        xlabel: Words for the horizontal axis, with the unit.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes, the first arm on top.

    Raises:
        ValueError: If a column is missing, an arm has several rows, nothing can be estimated, or a ratio is not
            positive.

    Example:
        >>> rows = pd.DataFrame({"arm": ["before"], "estimate": [0.02], "low": [0.01], "high": [0.03]})
        >>> plot_differences(rows, reference="none").get_xlabel()
        'difference to none'
    """
    asked = ("arm", estimate, low, high) if quantity is None else ("arm", "quantity", estimate, low, high)
    missing = [name for name in asked if name not in comparisons.columns]
    if missing:
        raise ValueError(
            f"A table with the columns {', '.join(asked)} was expected; this one lacks "
            f"{', '.join(missing)} and has {', '.join(map(str, comparisons.columns)) or 'none'}."
        )
    if quantity is not None:
        known = comparisons["quantity"].astype(str)
        comparisons = comparisons[known == quantity]
        if comparisons.empty:
            raise ValueError(f"Nothing compares {quantity!r}: the table holds {near_names(quantity, known)}.")
    if ratio is None:
        ratio = "kind" in comparisons.columns and set(comparisons["kind"]) == {"ratio"}
    if comparisons["arm"].duplicated().any():
        arm = comparisons.loc[comparisons["arm"].duplicated(), "arm"].iloc[0]
        raise ValueError(f"Arm {arm!r} has several rows: draw one of them at a time, by quantity=.")
    values = comparisons.set_index("arm")[[estimate, low, high]].astype(float)
    finite = values.to_numpy()[np.isfinite(values.to_numpy())]
    if not np.isfinite(values[estimate]).any():
        raise ValueError(f"None of the {len(values)} values of {estimate!r} is finite: there is nothing to draw.")
    if ratio and finite.min() <= 0:
        raise ValueError(
            f"Ratios are positive, but the table holds {finite.min():g}; draw differences with ratio=False."
        )
    labels = arm_labels(comparisons, arms)
    styles = arm_styles(list(labels))
    drawn = [arm for arm in labels if arm in values.index]
    with house_style():
        ax = own_axes(ax, height=1.0 + 0.42 * len(drawn))
        ax.axvline(1.0 if ratio else 0.0, color=REFERENCE_COLOR, lw=1, ls=(0, (2, 2)), gid="no difference")
        notes = []
        for place, arm in enumerate(drawn):
            middle, lower, upper = (float(number) for number in values.loc[arm])
            bounded = bool(np.isfinite([lower, upper]).all())
            if bounded:
                ax.plot([lower, upper], [place, place], color=styles[arm].color, lw=2, gid="interval")
            face = styles[arm].color if bounded else "none"
            ax.plot([middle], [place], ls="", marker=styles[arm].marker, ms=7, color=styles[arm].color, mfc=face)
            notes.append(_note(middle, lower, upper, ratio=ratio))
        _dress(ax, [labels[arm] for arm in drawn], notes, ratio=ratio)
        to = labels.get(reference, reference) if reference is not None else "the reference"
        ax.set_xlabel(xlabel or f"{'ratio' if ratio else 'difference'} to {to}")
    return ax


def _note(middle: float, lower: float, upper: float, *, ratio: bool) -> str:
    if not np.isfinite(middle):
        return "not estimable"
    show = "{:.3g}" if ratio else "{:+.3g}"
    ends = ", ".join(show.format(end) for end in (lower, upper))
    return show.format(middle) + (f"  [{ends}]" if np.isfinite([lower, upper]).all() else "  (no interval)")


def _dress(ax: Axes, names: list[str], notes: list[str], *, ratio: bool) -> None:
    if ratio:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}"))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(notes)), notes)
    right.tick_params(length=0, colors=REFERENCE_COLOR)
    right.spines["right"].set_visible(False)
