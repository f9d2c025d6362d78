"""The loss around the initial weights and around the solution, arms side by side."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bn_lightning.analysis.plots.selection import Arms, arm_labels, near_names
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, SEED_ALPHA, arm_styles, house_style

LEVELS = 12


def plot_landscape_lines(
    points: pd.DataFrame, panels: Mapping[str, str], *, arms: Arms = None, norm_mode: str = "train"
) -> Figure:
    """Draw the loss along lines, a panel each: the median over seeds, single seeds thin.

    The median, because one seed whose loss overflows would take a mean with it.

    Args:
        points: The columns arm, seed, surface, norm_mode, first and loss, as `landscape_points` makes them.
        panels: Titles by surface; those without a finite loss are left out.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        norm_mode: "train" or "eval".

    Returns:
        The figure; a point without a finite loss leaves a gap.

    Raises:
        ValueError: If no line has a finite loss.

    Example:
        >>> rows = [("none", 0, "end_line", "train", a, 1 + a * a) for a in (-1.0, 0.0, 1.0)]
        >>> points = pd.DataFrame(rows, columns=["arm", "seed", "surface", "norm_mode", "first", "loss"])
        >>> plot_landscape_lines(points, {"end_line": "around the solution"}).axes[0].get_title()
        'around the solution'
    """
    finite = points[np.isfinite(points["loss"]) & (points["norm_mode"] == norm_mode)]
    drawn = {name: words for name, words in panels.items() if (finite["surface"] == name).any()}
    if not drawn:
        raise ValueError(f"No loss on {', '.join(panels)} is finite: there is nothing to draw.")
    labels = arm_labels(points, arms)
    styles = arm_styles(list(labels))
    with house_style():
        figure = Figure(figsize=(0.5 + 3.2 * len(drawn), 3.5), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for ax, (surface, words) in zip(axes, drawn.items(), strict=True):
            rows = finite[finite["surface"] == surface]
            for arm in labels:
                own = rows[rows["arm"].astype(str) == arm].pivot(index="first", columns="seed", values="loss")
                style = styles[arm]
                for seed in own:
                    ax.plot(own.index, own[seed], color=style.color, lw=0.7, alpha=SEED_ALPHA, gid="seed")
                ax.plot(own.index, own.median(axis="columns"), color=style.color, ls=style.dash, lw=2, gid="median")
            if (rows["loss"] > 0).all() and rows["loss"].max() > 30 * rows["loss"].min():
                ax.set_yscale("log")
            ax.set_title(words, fontsize="medium")
            ax.set_xlabel("multiple of the direction")
        axes[0].set_ylabel("loss")
        handles = [
            Line2D([], [], color=styles[arm].color, ls=styles[arm].dash, lw=2, label=label)
            for arm, label in labels.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    return figure


def plot_landscape_planes(points: pd.DataFrame, rows: Mapping[str, str], *, arms: Arms = None) -> Figure:
    """Draw the loss over two directions as contours: a row a surface, a column an arm, one colour scale a row.

    Of each arm its lowest seed is drawn, norms in training mode. What is not finite stays grey.

    Args:
        points: The columns arm, seed, surface, norm_mode, first, second and loss, as `landscape_points` makes them.
        rows: Words by surface; those without a finite loss are left out.
        arms: All arms of the study in order (or name → label).

    Returns:
        The figure.

    Raises:
        ValueError: If no plane has a finite loss.

    Example:
        >>> grid = [("none", 0, "end_plane", "train", a, b, 1.0 + a + b) for a in (0, 1) for b in (0, 1)]
        >>> names = ["arm", "seed", "surface", "norm_mode", "first", "second", "loss"]
        >>> plot_landscape_planes(pd.DataFrame(grid, columns=names), {"end_plane": "solution"}).axes[0].get_title()
        'none, seed 0'
    """
    train = points[(points["norm_mode"] == "train") & points["surface"].isin(list(rows))]
    finite = train[np.isfinite(train["loss"])]
    drawn = [name for name in rows if (finite["surface"] == name).any()]
    if not drawn:
        found = near_names(next(iter(rows)), points["surface"].astype(str))
        raise ValueError(f"No loss on {', '.join(rows)} is finite: the table holds {found}.")
    labels = arm_labels(points, arms)
    with house_style():
        figure = Figure(figsize=(1.5 + 2.5 * len(labels), 0.4 + 2.6 * len(drawn)), layout="constrained")
        grid = figure.subplots(len(drawn), len(labels), sharex=True, sharey=True, squeeze=False)
        for line, (surface, axes) in enumerate(zip(drawn, grid, strict=True)):
            norm, levels = _scale(finite.loc[finite["surface"] == surface, "loss"])
            contours = None
            for ax, (arm, label) in zip(axes, labels.items(), strict=True):
                own = train[(train["surface"] == surface) & (train["arm"].astype(str) == arm)]
                ax.set_facecolor("#D0D0D0")
                ax.grid(False)
                seed = own["seed"].min()
                table = own[own["seed"] == seed].pivot(index="second", columns="first", values="loss")
                values = np.ma.masked_invalid(table.to_numpy(float))
                if values.count():
                    contours = ax.contourf(
                        table.columns, table.index, values, levels=levels, norm=norm, cmap="viridis", extend="both"
                    )
                    ax.contour(table.columns, table.index, values, levels=levels, colors="white", linewidths=0.4)
                ax.plot([0], [0], marker="+", ms=9, mew=1.5, color="white")
                ax.set_aspect("equal")
                if line == 0:
                    ax.set_title(f"{label}, seed {seed}" if len(own) else label, fontsize="medium")
                for axis in (ax.xaxis, ax.yaxis):
                    axis.set_major_locator(MaxNLocator(3))
            axes[0].set_ylabel(rows[surface])
            if contours is not None:
                bar = figure.colorbar(contours, ax=list(axes), label="loss", ticks=levels[::3], format="%.3g")
                bar.minorticks_off()
        figure.supxlabel("first direction; upwards the second", fontsize="medium", color=REFERENCE_COLOR)
    return figure


def _scale(losses: "pd.Series[float]") -> tuple[Normalize, np.ndarray]:
    low, high = float(losses.min()), float(losses.max())
    if low > 0 and high > 10 * low:
        return LogNorm(low, high), np.geomspace(low, high, LEVELS)
    top = high if high > low else low + 1
    return Normalize(low, top), np.linspace(low, top, LEVELS)
