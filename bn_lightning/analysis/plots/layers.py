"""Quantities of several layers over steps or over the depth, arms in one panel."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bn_lightning.analysis.plots.curves import plot_curves
from bn_lightning.analysis.plots.selection import Arms, arm_labels, near_names, require_columns
from bn_lightning.analysis.plots.style import REFERENCE_COLOR, arm_styles, house_style, legend_above
from bn_lightning.figure_text import plain_text

PANEL_WIDTH, PANEL_HEIGHT = 2.7, 2.3  # inches
MAX_LAYERS = 6  # side by side on a page; more are thinned evenly

GRADIENT_SHIFT = {"gradient_shift": "‖G − G'‖₂", "gradient_shift_cosine": "cosine of G and G'"}
ACTIVATION_SHIFT = {
    "activation_shift_wasserstein_normalised": "W₁ / std, one step",
    "activation_drift_wasserstein_normalised": "W₁ / std, since the start",
}


def plot_layers(
    results: pd.DataFrame,
    quantities: Mapping[str, str] = GRADIENT_SHIFT,
    *,
    layers: Sequence[str] | None = None,
    arms: Arms = None,
    log_y: Sequence[str] | None = None,
    seeds: bool = True,
) -> tuple[tuple[Axes, ...], ...]:
    """Draw quantities (rows) of layers (columns) over optimizer steps, all arms in each panel.

    After Santurkar et al. (2018), figure 2: the distance ‖G − G'‖₂ and the cosine of gradients, layer by layer, with
    and without batch norm. Lines and bands are those of `plot_curves`. The panels of a row share their axis.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        quantities: Words for the vertical axis by quantity; `GRADIENT_SHIFT` by default, `ACTIVATION_SHIFT` beside it.
        layers: Paths of the layers from left to right; by default those that have the first quantity, thinned to six.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        log_y: Quantities with a logarithmic axis; by default those whose finite values are all positive and span more
            than a factor of 30.
        seeds: Draw single seeds as thin lines behind the mean.

    Returns:
        A row of axes for each quantity (`axes[0][0].figure` saves the figure).

    Raises:
        ValueError: If the table holds no such quantity or layer, or no finite value in a panel.

    Example:
        >>> rows = [(arm, 0, step, layer, name, 0.5) for arm in ("none", "before") for step in (0, 9)
        ...         for layer in ("net.4", "net.8") for name in GRADIENT_SHIFT]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> [[ax.get_title() for ax in row] for row in plot_layers(table)]
        [['net.4', 'net.8'], ['', '']]
    """
    require_columns(results)
    chosen = _layers_of(results, next(iter(quantities)), layers)
    rows = results[results["layer"].isin(chosen) & results["quantity"].isin(list(quantities))]
    if arms is None:
        # From the whole table: an arm that lacks a layer must not shift the colours of that panel.
        arms = list(dict.fromkeys(rows["arm"].astype(str)))
    with house_style():
        size = (0.9 + PANEL_WIDTH * len(chosen), 0.8 + PANEL_HEIGHT * len(quantities))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(quantities), len(chosen), sharex=True, sharey="row", squeeze=False)
        handles: list[Artist] = []
        for number, (quantity, words) in enumerate(quantities.items()):
            log = _is_wide(rows, quantity) if log_y is None else quantity in log_y
            for ax, layer in zip(grid[number], chosen, strict=True):
                plot_curves(results, quantity, layer=layer, arms=arms, log_y=log, seeds=seeds, ylabel=words, ax=ax)
                handles = _taken_legend(ax, handles)
                ax.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
                ax.set_title(plain_text(layer) if number == 0 else "")
                ax.set_xlabel("optimizer step" if number == len(grid) - 1 else "")
                ax.set_ylabel(words if ax is grid[number][0] else "")
        figure.legend(handles=handles, loc="outside upper left", ncols=max(1, len(handles)), frameon=False)
    return tuple(tuple(row) for row in grid)


def plot_over_depth(results: pd.DataFrame, quantities: Mapping[str, str], *, arms: Arms = None) -> tuple[Axes, ...]:
    """Draw quantities of all layers at their last step, from the first layer to the last, one panel a quantity.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value; of several seeds the means are
            drawn. A layer without a finite value has no point.
        quantities: Words for the vertical axis by quantity; those that the table lacks are left out.
        arms: All arms in order (or name → label).

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds none of the quantities for a layer.

    Example:
        >>> rows = [("last", 0, 9, layer, "gradient_shift", 0.5) for layer in ("net.4", "net.8")]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> [ax.get_ylabel() for ax in plot_over_depth(table, GRADIENT_SHIFT)]
        ["‖G − G'‖₂"]
    """
    require_columns(results)
    there = results[(results["layer"].fillna("") != "") & results["quantity"].isin(list(quantities))]
    drawn = {name: words for name, words in quantities.items() if (there["quantity"] == name).any()}
    if not drawn:
        known = near_names(next(iter(quantities)), results["quantity"].astype(str))
        raise ValueError(f"No layer has any of {', '.join(quantities)}: the table holds {known}.")
    labels = arm_labels(there, arms)
    styles = arm_styles(list(labels))
    with house_style():
        figure = Figure(figsize=(0.6 + 3.4 * len(drawn), 3.6), layout="constrained")
        axes = tuple(figure.subplots(1, len(drawn), squeeze=False)[0])
        for ax, (name, words) in zip(axes, drawn.items(), strict=True):
            rows = there[there["quantity"] == name]
            order = list(dict.fromkeys(rows["layer"]))
            for arm, label in labels.items():
                means = rows[rows["arm"] == arm].groupby("layer")["value"].mean().reindex(order)
                style = styles[arm]
                ax.plot(range(len(order)), means, color=style.color, ls=style.dash, marker=style.marker, label=label)
            ax.set_xticks(range(len(order)), [plain_text(layer) for layer in order], rotation=45, ha="right")
            ax.set_ylabel(words)
            if _is_wide(rows, name):
                ax.set_yscale("log")
            else:
                ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                if (rows["value"].max() > 0) and not (rows["value"] < 0).any() and "cosine" not in name:
                    ax.set_ylim(0, 1.08 * float(rows["value"].max()))
        if len(labels) > 1:
            legend_above(axes[0])
        else:
            figure.suptitle(next(iter(labels.values())), x=0.01, ha="left", color=REFERENCE_COLOR, fontsize="medium")
    return axes


def _taken_legend(ax: Axes, known: list[Artist]) -> list[Artist]:
    """Take a panel's legend away, and give back the longer of its entries and those known."""
    legend = ax.get_legend()
    if legend is None:
        return known
    entries = [entry for entry in legend.legend_handles if entry is not None]
    legend.remove()
    return entries if len(entries) > len(known) else known


def _layers_of(results: pd.DataFrame, quantity: str, layers: Sequence[str] | None) -> list[str]:
    of_quantity = results.loc[results["quantity"] == quantity, "layer"].fillna("").astype(str)
    known = [layer for layer in dict.fromkeys(of_quantity) if layer]
    if layers is None:
        if not known:
            found = near_names(quantity, results["quantity"].astype(str))
            raise ValueError(f"No layer has {quantity!r}: the table holds {found}.")
        kept = np.linspace(0, len(known) - 1, min(len(known), MAX_LAYERS)).round().astype(int)
        return [known[at] for at in kept]
    for layer in layers:
        if layer not in known:
            raise ValueError(f"No {quantity!r} of layer {layer!r}: the table holds {near_names(layer, known)}.")
    return list(layers)


def _is_wide(rows: pd.DataFrame, quantity: str) -> bool:
    values = rows.loc[rows["quantity"] == quantity, "value"].astype(float)
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min())
