"""The loss on lines and over planes in the space of the parameters, and the largest eigenvalues of its Hessian."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bn_lightning.analysis.plots.selection import near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, arm_styles, house_style, legend_above, own_axes

MODES = {"train": "norms in training mode", "eval": "norms in evaluation mode"}
LEVELS = 14


def plot_loss_line(
    points: pd.DataFrame, surface: str, *, xlabel: str = "multiple of the direction", ax: Axes | None = None
) -> Axes:
    """Draw the loss along one line, a curve for each mode of the norms.

    Args:
        points: Table with the columns surface, norm_mode, first, second and loss, as `MeasureRows.points` makes it.
        surface: Name of the line.
        xlabel: Words for the horizontal axis.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes; a point without a finite loss leaves a gap.

    Raises:
        ValueError: If there is no such line, or no finite loss on it.

    Example:
        >>> points = pd.DataFrame({"surface": "random", "norm_mode": "train", "first": [0, 1], "loss": [2.0, 3.0]})
        >>> plot_loss_line(points, "random").get_ylabel()
        'loss'
    """
    rows = _of_surface(points, surface)
    with house_style():
        ax = own_axes(ax, width=5.0, height=3.6)
        styles = arm_styles(list(MODES))
        for mode, words in MODES.items():
            line = rows[rows["norm_mode"] == mode].sort_values("first")
            if len(line):
                ax.plot(
                    line["first"], _finite(line["loss"]), color=styles[mode].color, ls=styles[mode].dash, label=words
                )
        ax.set_xlabel(xlabel)
        ax.set_ylabel("loss")
        _log_if_wide(ax, rows["loss"])
        legend_above(ax)
    return ax


def plot_loss_plane(points: pd.DataFrame, surface: str = "plane") -> tuple[Axes, ...]:
    """Draw the loss over two directions as contours, a panel for each mode of the norms, on one colour scale.

    After Li et al. (2018), "Visualizing the Loss Landscape of Neural Nets", figure 1. What is not finite stays grey.

    Args:
        points: Table with the columns surface, norm_mode, first, second and loss, as `MeasureRows.points` makes it.
        surface: Name of the plane.

    Returns:
        The axes (`axes[0].figure` saves the figure).

    Raises:
        ValueError: If there is no such plane, or no finite loss on it.

    Example:
        >>> grid = [(a, b, 1.0 + a * a + b * b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        >>> points = pd.DataFrame(grid, columns=["first", "second", "loss"]).assign(surface="plane", norm_mode="train")
        >>> len(plot_loss_plane(points))
        1
    """
    rows = _of_surface(points, surface)
    finite = rows["loss"][np.isfinite(rows["loss"])]
    low, high = float(finite.min()), float(finite.max())
    wide = low > 0 and high > 30 * low
    top = high if high > low else low + 1
    norm: Normalize = LogNorm(low, top) if wide else Normalize(low, top)
    levels = (np.geomspace if wide else np.linspace)(low, top, LEVELS)
    modes = [mode for mode in MODES if (rows["norm_mode"] == mode).any()]
    with house_style():
        figure = Figure(figsize=(1.4 + 3.4 * len(modes), 3.6), layout="constrained")
        axes = tuple(figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0])
        drawn: Any = None
        for ax, mode in zip(axes, modes, strict=True):
            grid = rows[rows["norm_mode"] == mode].pivot(index="second", columns="first", values="loss")
            values = np.ma.masked_invalid(grid.to_numpy())
            ax.set_facecolor("#D0D0D0")
            ax.grid(False)
            drawn = ax.contourf(grid.columns, grid.index, values, levels=levels, norm=norm, cmap="viridis")
            ax.contour(grid.columns, grid.index, values, levels=levels, colors="white", linewidths=0.4)
            ax.plot([0], [0], marker="+", ms=9, mew=1.5, color="white")
            ax.set_title(MODES[mode])
            ax.set_xlabel("first direction")
            ax.set_aspect("equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(4, prune="both"))
        axes[0].set_ylabel("second direction")
        bar = figure.colorbar(drawn, ax=axes, label="loss", ticks=levels[:: LEVELS // 5], format="%.3g")
        bar.minorticks_off()
    return axes


def plot_eigenvalues(results: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues of the Hessian, norms in training mode beside evaluation mode.

    Args:
        results: Long table; reads the quantities `hessian_eigenvalue_<rank>_<mode>` of the whole model, of one
            checkpoint.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds no finite eigenvalue.

    Example:
        >>> rows = [("last", 0, 9, "", f"hessian_eigenvalue_1_{mode}", 2.0) for mode in ("train", "eval")]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> plot_eigenvalues(table).get_xlabel()
        'rank of the eigenvalue'
    """
    parts = results["quantity"].astype(str).str.extract(r"^hessian_eigenvalue_(?P<rank>\d+)_(?P<mode>train|eval)$")
    found = parts.assign(value=results["value"]).dropna()
    found = found[np.isfinite(found["value"])].astype({"rank": int})
    if found.empty:
        raise ValueError("The table holds no finite eigenvalue of the Hessian: measure curvature first.")
    with house_style():
        ax = own_axes(ax, width=5.0, height=3.6)
        styles = arm_styles(list(MODES))
        for mode, words in MODES.items():
            own = found[found["mode"] == mode].sort_values("rank")
            if len(own):
                style = styles[mode]
                ax.plot(own["rank"], own["value"], color=style.color, ls=style.dash, marker=style.marker, label=words)
        _log_if_wide(ax, found["value"])
        if ax.get_yscale() != "log":
            ax.axhline(0, color=REFERENCE_COLOR, lw=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("rank of the eigenvalue")
        ax.set_ylabel("eigenvalue of the Hessian")
        legend_above(ax)
    return ax


def _of_surface(points: pd.DataFrame, surface: str) -> pd.DataFrame:
    rows = points[points["surface"] == surface]
    if rows.empty:
        raise ValueError(
            f"There is no line or plane {surface!r}: the table holds {near_names(surface, points['surface'])}."
        )
    if not np.isfinite(rows["loss"]).any():
        raise ValueError(f"No loss on {surface!r} is finite: there is nothing to draw.")
    return rows


def _finite(values: "pd.Series[float]") -> "pd.Series[float]":
    return values.where(np.isfinite(values))


def _log_if_wide(ax: Axes, values: "pd.Series[float]") -> None:
    finite = values[np.isfinite(values)]
    if finite.min() > 0 and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
