"""One statistic of every layer over steps, as a heat map."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bn_lightning.analysis.plots.selection import near_names, require_columns
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, house_style, own_axes


def plot_heatmap(
    results: pd.DataFrame,
    quantity: str,
    *,
    arm: str,
    seed: int | None = None,
    layers: Sequence[str] | None = None,
    log: bool = False,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity of one run over layers (rows, the first on top) and optimizer steps.

    The horizontal axis is in steps also where they are not evenly spaced: each value fills the way to the middle
    between its neighbours. What is missing or not finite is left grey, and said below the map; on a logarithmic scale
    so is what is not positive.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        quantity: Name of the quantity, such as "preactivation_var".
        arm: Name of the arm.
        seed: The seed to draw, by default the arm's lowest.
        layers: Paths of the layers from top to bottom; by default all that have the quantity, in the table's order.
        log: Logarithmic colours.
        label: Words for the title; by default the quantity's name with spaces.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds no such arm, quantity, seed or layer, several values for one place, or no value
            that can be drawn.

    Example:
        >>> rows = [("none", 0, step, layer, "var", 1.0 + step) for layer in ("a", "b") for step in (0, 10)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> [tick.get_text() for tick in plot_heatmap(table, "var", arm="none").get_yticklabels()]
        ['a', 'b']
    """
    rows = _rows_of_run(results, quantity, arm, seed)
    order = list(layers) if layers is not None else list(dict.fromkeys(rows["layer"]))
    for layer in order:
        if layer not in set(rows["layer"]):
            raise ValueError(f"No {quantity!r} of layer {layer!r}: the table holds {near_names(layer, rows['layer'])}.")
    if rows.duplicated(["layer", "step"]).any():
        raise ValueError(
            f"{quantity!r} of arm {arm!r} has several values for one layer and step: the table mixes runs."
        )
    table = (
        rows.pivot(index="layer", columns="step", values="value").loc[order].sort_index(axis="columns").astype(float)
    )
    values = np.ma.masked_invalid(table.to_numpy())
    values = np.ma.masked_where(values.filled(1.0) <= 0, values) if log else values
    if not values.count():
        raise ValueError(
            f"No value of {quantity!r} of arm {arm!r} can be drawn: none is finite{' and positive' * log}."
        )
    with house_style():
        ax = own_axes(ax, height=1.4 + 0.34 * len(order))
        colors = sns.color_palette("mako", as_cmap=True).with_extremes(bad="#C9C9C9")
        scale = (LogNorm if log else Normalize)(vmin=float(values.min()), vmax=float(values.max()))
        edges = step_edges(table.columns.to_numpy(float))
        mesh = ax.pcolormesh(edges, np.arange(len(order) + 1) - 0.5, values, cmap=colors, norm=scale)
        ax.grid(visible=False)
        ax.invert_yaxis()
        ax.set_yticks(range(len(order)), order)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        masked = int(values.size - values.count())
        why = "missing, not finite or not positive" if log else "missing or not finite"
        note = f"\ngrey: {masked} of {values.size} values {why}" if masked else ""
        ax.set_xlabel("optimizer step" + note)
        figure = ax.get_figure(root=True)
        if figure is not None:
            bar = figure.colorbar(mesh, ax=ax, pad=0.02)
            bar.outline.set_visible(False)
        words = label or quantity.replace("_", " ")
        ax.set_title(f"{words}: {arm}, seed {rows['seed'].iloc[0]}", color=REFERENCE_COLOR)
    return ax


def _rows_of_run(results: pd.DataFrame, quantity: str, arm: str, seed: int | None) -> pd.DataFrame:
    """The quantity's rows of one arm and seed, or an error naming what there is instead."""
    require_columns(results)
    of_arm = results[results["arm"].astype(str) == arm]
    if of_arm.empty:
        raise ValueError(f"No results of arm {arm!r}: the table holds {near_names(arm, results['arm'].astype(str))}.")
    rows = of_arm[(of_arm["quantity"] == quantity) & (of_arm["layer"].fillna("") != "")]
    if rows.empty:
        known = of_arm.loc[of_arm["layer"].fillna("") != "", "quantity"].astype(str)
        raise ValueError(
            f"No layer of arm {arm!r} has {quantity!r}: of layers the table holds {near_names(quantity, known)}."
        )
    chosen = int(rows["seed"].min()) if seed is None else seed
    of_seed = rows[rows["seed"] == chosen]
    if of_seed.empty:
        raise ValueError(f"No {quantity!r} of arm {arm!r} with seed {seed}: there are {sorted(set(rows['seed']))}.")
    return of_seed


def step_edges(steps: np.ndarray) -> np.ndarray:
    """Bound each step's cell by the middles to its neighbours, the outer ones symmetrically.

    Args:
        steps: Ascending steps, shape (n,).

    Returns:
        Edges, shape (n + 1,).

    Example:
        >>> step_edges(np.array([0.0, 10.0, 30.0]))
        array([-5.,  5., 20., 40.])
    """
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])
