"""How loss and gradient vary along the gradient, over steps, arms in one panel."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bn_lightning.analysis.plots.curves import plot_curves
from bn_lightning.analysis.plots.selection import Arms, arm_labels, select_quantity, steps_by_seed
from bn_lightning.analysis.plots.style import BAND_ALPHA, arm_styles, house_style, legend_above, own_axes

PANEL_WIDTH, PANEL_HEIGHT = 3.4, 3.5  # inches


def plot_ranges(
    results: pd.DataFrame,
    quantity: str,
    *,
    layer: str = "",
    seed: int | Literal["mean"] | None = None,
    arms: Arms = None,
    log_y: bool = True,
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw between the smallest and the largest value of a quantity at each step, a shaded band per arm.

    After Santurkar et al. (2018), figure 4 (a, b). Reads the quantities `<quantity>_min` and `<quantity>_max`. Where
    either is not finite the band has a gap, and where none follows it ends in a cross.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        quantity: Such as "loss_range" or "gradient_predictiveness".
        layer: Path of the layer, empty for a quantity of the whole model.
        seed: Draw this seed, or "mean" for the means of both ends over all seeds. None takes each arm's lowest.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        log_y: Logarithmic values, if all are positive.
        ylabel: Words for the vertical axis; by default the quantity's name with spaces.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds no such quantity or seed, or no finite value of it.

    Example:
        >>> rows = [("none", 0, step, "", f"loss_range_{end}", 1 / (1 + step) + (end == "max"))
        ...         for step in range(4) for end in ("min", "max")]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> plot_ranges(table, "loss_range").get_ylabel()
        'loss range'
    """
    ends = [select_quantity(results, f"{quantity}_{end}", layer=layer) for end in ("min", "max")]
    labels = arm_labels(ends[0], arms)
    styles = arm_styles(list(labels))
    bands = {}
    for arm in labels:
        tables = [steps_by_seed(rows, arm) for rows in ends]
        if not tables[0].empty:
            bands[arm] = pd.concat(
                [_one_seed(table, seed, arm) for table in tables], axis="columns", keys=["low", "high"]
            )
    finite = [band.to_numpy()[np.isfinite(band.to_numpy())] for band in bands.values()]
    if not any(map(len, finite)):
        raise ValueError(f"No value of {quantity!r} is finite: there is no range to draw.")
    handles = []
    with house_style():
        ax = own_axes(ax)
        for arm, band in bands.items():
            style = styles[arm]
            ax.fill_between(
                band.index, band["low"], band["high"], color=style.color, alpha=BAND_ALPHA, lw=0, gid="range"
            )
            for end in ("low", "high"):
                ax.plot(band.index, band[end], color=style.color, ls=style.dash, lw=0.9, gid="edge")
            _mark_end(ax, band, style.color)
            handles.append(Line2D([], [], color=style.color, ls=style.dash, lw=2, label=labels[arm]))
        if log_y and all((values > 0).all() for values in finite):
            ax.set_yscale("log")
        ax.set_xlabel("optimizer step")
        ax.set_ylabel(ylabel or quantity.replace("_", " "))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        legend_above(ax, handles=handles)
    return ax


def _one_seed(table: pd.DataFrame, seed: int | str | None, arm: str) -> "pd.Series[float]":
    if seed == "mean":
        return table.mean(axis="columns", skipna=False)
    seeds = [int(column) for column in table.columns]
    if seed is not None and seed not in seeds:
        raise ValueError(f"Seed {seed} is not in the arm {arm!r}, which has the seeds {seeds}.")
    return table[min(seeds) if seed is None else seed]


def _mark_end(ax: Axes, band: pd.DataFrame, color: str) -> None:
    whole = np.flatnonzero(np.isfinite(band.to_numpy()).all(axis=1))
    if len(whole) and whole[-1] < len(band) - 1:
        last = band.iloc[[whole[-1]]]
        ax.plot(last.index, last["high"], color=color, marker="x", ms=7, mew=2, ls="", gid="end")


def plot_smoothness(
    results: pd.DataFrame,
    *,
    seed: int | Literal["mean"] | None = None,
    arms: Arms = None,
    normalised: bool = False,
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, Axes, Axes]:
    """Draw the three panels of Santurkar et al. (2018), figure 4, from what `LossSmoothnessMonitor` recorded.

    Loss and gradient predictiveness are ranges of one seed; effective β is a mean over seeds as in `plot_curves`. β
    depends on the scale of weights before norms: arms with and without norm are compared by `normalised`.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        seed: As for `plot_ranges`.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        normalised: Draw β in normalised coordinates.
        axes: Three axes; by default panels side by side in a new figure (`axes[0].figure` saves it).

    Returns:
        The axes.

    Raises:
        ValueError: If a quantity is missing or holds no finite value, or `axes` are not three.

    Example:
        >>> names = ["loss_range_min", "loss_range_max", "gradient_predictiveness_min", "gradient_predictiveness_max"]
        >>> rows = [("none", 0, step, "", name, 1.0 + step) for step in (0, 9) for name in [*names, "effective_beta"]]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> len(plot_smoothness(table))
        3
    """
    with house_style():
        panels = _three_panels() if axes is None else tuple(axes)
        if len(panels) != 3:
            raise ValueError(f"Smoothness is drawn on three axes, got {len(panels)}.")
        loss, predictiveness, beta = panels
        plot_ranges(results, "loss_range", seed=seed, arms=arms, ylabel="loss along the gradient", ax=loss)
        label = "change of the gradient, ‖Δg‖₂"
        plot_ranges(results, "gradient_predictiveness", seed=seed, arms=arms, ylabel=label, ax=predictiveness)
        quantity, words = "effective_beta", "effective β"
        if normalised:
            quantity, words = f"{quantity}_normalised", f"{words}, normalised coordinates"
        plot_curves(results, quantity, arms=arms, log_y=True, ylabel=words, ax=beta)
        beta.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        for ax in (predictiveness, beta):
            # One for the three panels.
            if (legend := ax.get_legend()) is not None:
                legend.remove()
    return loss, predictiveness, beta


def _three_panels() -> tuple[Axes, ...]:
    figure = Figure(figsize=(0.4 + 3 * PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    return tuple(figure.subplots(1, 3, sharex=True))
