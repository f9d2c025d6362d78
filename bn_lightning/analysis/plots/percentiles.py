"""Percentiles of what a nonlinearity receives, over steps, one panel per arm."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bn_lightning.analysis.plots.selection import Arms, arm_labels, select_quantity, steps_by_seed
from bn_lightning.analysis.plots.style import BAND_ALPHA, REFERENCE_COLOR, ArmStyle, arm_styles, house_style
from bn_lightning.analysis.plots.units import followed_units

PANEL_WIDTH, PANEL_HEIGHT = 2.6, 3.2  # inches

Unit = int | Literal["followed"] | None


def plot_percentile_bands(
    results: pd.DataFrame,
    *,
    layer: str,
    unit: Unit = None,
    percentiles: Sequence[float] = (15, 50, 85),
    quantity_prefix: str = "preactivation",
    seed: int | Literal["mean"] | None = None,
    arms: Arms = None,
    ylabel: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw how the distribution of a layer's or a unit's pre-activation moves while each arm trains.

    After Ioffe & Szegedy (2015), Figure 1 (b, c): the {15, 50, 85}th percentiles of the input to one typical sigmoid of
    the last hidden layer, without and with batch normalization. The panels share both axes; the title says which unit
    and which seed they show. Reads the quantities `<prefix>_p<percentile>` of a layer, or
    `<prefix>_unit<unit>_p<percentile>` of one unit.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        layer: Path of the layer whose pre-activations were recorded.
        unit: Index of the unit; "followed" for the unit the table holds (the lowest one where there are several,
            arm by arm, since arms may follow different units); None for the whole layer.
        percentiles: Which percentiles to draw, in [0, 100]; pairs from the outside in become nested bands.
        quantity_prefix: What the quantities' names begin with.
        seed: Draw this seed, or "mean" for the mean of each percentile over all seeds (steps at which every seed is
            finite). None takes the lowest seed that all drawn arms have, so that the arms are twins.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        ylabel: Words for the vertical axis.
        axes: One axes per drawn arm; by default panels side by side in a new figure (`axes[0].figure` saves it).

    Returns:
        The axes of the drawn arms, in order.

    Raises:
        ValueError: If the table lacks one of the percentiles, the unit or the seed, holds no finite value, or `axes`
            are not one per drawn arm.

    Example:
        >>> rows = [(arm, 0, step, "net.4", f"preactivation_p{p}", p * step)
        ...         for arm in ("none", "before") for step in range(3) for p in (15, 50, 85)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> [ax.get_title() for ax in plot_percentile_bands(table, layer="net.4")]
        ['none', 'before']
    """
    ordered = sorted(percentiles)
    if not ordered or ordered[0] < 0 or ordered[-1] > 100:
        raise ValueError(f"Percentiles between 0 and 100 were expected, found {tuple(percentiles)}.")
    units: dict[tuple[str, int], int] = {}
    if unit == "followed":
        results, units = followed_units(results, layer, prefix=quantity_prefix)
    of_unit = f"_unit{unit}" if isinstance(unit, int) else ""
    names = [f"{quantity_prefix}{of_unit}_p{percentile:g}" for percentile in ordered]
    selected = [select_quantity(results, name, layer=layer) for name in names]
    labels = arm_labels(selected[0], arms)
    styles = arm_styles(list(labels))
    tables = {arm: [steps_by_seed(rows, arm) for rows in selected] for arm in labels}
    drawn = {arm: of_arm for arm, of_arm in tables.items() if not any(table.empty for table in of_arm)}
    chosen = _choose_seed(drawn, seed)
    bands = {arm: _one_seed(of_arm, chosen) for arm, of_arm in drawn.items()}
    if not any(np.isfinite(band.to_numpy()).any() for band in bands.values()):
        raise ValueError(f"No percentile of layer {layer!r} is finite for seed {chosen}: there is no band to draw.")
    if axes is not None and len(axes) != len(bands):
        raise ValueError(f"{len(bands)} arms need {len(bands)} axes ({', '.join(bands)}), got {len(axes)}.")
    shown = {arm: {u for (a, s), u in units.items() if a == arm and chosen in (s, "mean")} for arm in bands}
    one = next(iter(shown.values())) if len({frozenset(of_arm) for of_arm in shown.values()}) == 1 else set()
    with house_style():
        panels = tuple(axes) if axes is not None else _panels(len(bands))
        for ax, (arm, band) in zip(panels, bands.items(), strict=True):
            number = f" (unit {min(shown[arm])})" if len(shown[arm]) == 1 and not one else ""
            complete = _draw_band(ax, band, styles[arm])
            ax.set_title(labels[arm] + number + ("" if complete else " (ends early, ×)"))
            ax.set_xlabel("optimizer step")
        panels[0].set_ylabel(ylabel or "pre-activation")
        figure = panels[0].get_figure(root=True)
        if axes is None and figure is not None:
            which = (
                f"mean over {max(t[0].shape[1] for t in drawn.values())} seeds"
                if chosen == "mean"
                else f"seed {chosen}"
            )
            common = unit if isinstance(unit, int) else min(one) if len(one) == 1 else None
            whom = f"unit {common} of {layer}" if common is not None else f"one unit of {layer}" if units else layer
            listed = ", ".join(f"{percentile:g}" for percentile in ordered)
            words = f"input to the nonlinearity of {whom}: percentiles {listed}; {which}"
            figure.suptitle(words, x=0.01, ha="left", color=REFERENCE_COLOR, fontsize="medium")
    return panels


def _choose_seed(drawn: dict[str, list[pd.DataFrame]], seed: int | str | None) -> int | str:
    shared = set.intersection(*({int(s) for s in of_arm[0].columns} for of_arm in drawn.values()))
    if seed is None and not shared:
        raise ValueError(f"The arms {', '.join(drawn)} share no seed: name one arm by arms=, or pass seed='mean'.")
    if isinstance(seed, int) and seed not in shared:
        raise ValueError(
            f"Seed {seed} is not in every arm of {', '.join(drawn)}: they share the seeds {sorted(shared)}."
        )
    return min(shared) if seed is None else seed


def _one_seed(tables: list[pd.DataFrame], seed: int | str) -> pd.DataFrame:
    """Steps × percentiles, of one seed or averaged over all."""
    columns = [table.mean(axis="columns", skipna=False) if seed == "mean" else table[seed] for table in tables]
    return pd.concat(columns, axis="columns")


def _panels(count: int) -> tuple[Axes, ...]:
    figure = Figure(figsize=(max(4.0, 0.7 + PANEL_WIDTH * count), PANEL_HEIGHT), layout="constrained")
    return tuple(figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])


def _draw_band(ax: Axes, band: pd.DataFrame, style: ArmStyle) -> bool:
    """Draw one panel; say whether every value was finite."""
    steps, values = band.index.to_numpy(), band.to_numpy()
    count = values.shape[1]
    for outer in range(count // 2):
        low, high = values[:, outer], values[:, count - 1 - outer]
        ax.fill_between(steps, low, high, color=style.color, alpha=BAND_ALPHA, lw=0, gid="band")
        for edge in (low, high):
            ax.plot(steps, edge, color=style.color, lw=0.8, gid="edge")
    if count % 2:
        ax.plot(steps, values[:, count // 2], color=style.color, lw=2, gid="middle")
    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if len(finite) < len(steps):
        end = finite[-1:]
        ax.plot(steps[end], values[end, count // 2], color=style.color, marker="x", ms=7, mew=2, ls="", gid="end")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return len(finite) == len(steps)
