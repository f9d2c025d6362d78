"""Figures of one run's measurements over steps: ranges along the gradient, and shift layer by layer.

seaborn is imported when a figure is drawn. Figures are never made through pyplot, so no backend is
chosen and nothing has to be closed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bn_lightning.figure_text import plain_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# TensorBoard scales figures down to its cards; one look at full size must be sharp.
_DPI = 150
_NAMED_LAYERS = 12  # past this a legend is longer than the panel it explains

_RANGES = (("loss_range", "loss along the gradient"), ("gradient_predictiveness", "change of the gradient, ‖Δg‖₂"))
_BETAS = (("effective_beta", "raw", "-"), ("effective_beta_normalised", "in normalised coordinates", "--"))
_SHIFTS = {
    "gradient_shift": (("gradient_shift", "‖G − G'‖₂", True), ("gradient_shift_cosine", "cosine of G and G'", False)),
    "activation_shift": (
        ("activation_shift_wasserstein_normalised", "W₁ / pooled std, one step", True),
        ("activation_drift_wasserstein_normalised", "W₁ / pooled std, since the start", True),
    ),
}


def smoothness_figures(table: "pandas.DataFrame") -> "dict[str, Figure]":
    """After Santurkar et al. (2018), figure 4: ranges of loss and gradient along the gradient, and effective β.

    Args:
        table: Columns step, layer, quantity, value.

    Returns:
        One figure of three panels, by tag; none where no value is finite.
    """
    wide = _finite(table).pivot_table(index="step", columns="quantity", values="value")
    if wide.empty:
        return {}
    figure, axes = _panels(3)
    colour = _colours(1)[0]
    for ax, (quantity, label) in zip(axes, _RANGES, strict=False):
        ends = [wide.get(f"{quantity}_{end}") for end in ("min", "max")]
        if any(end is None for end in ends):
            continue
        low, high = ends
        marker = "o" if len(wide) == 1 else None  # a line needs two points to be seen
        ax.fill_between(wide.index, low, high, color=colour, alpha=0.3, linewidth=0)
        for end in (low, high):
            ax.plot(wide.index, end, color=colour, linewidth=0.8, marker=marker)
        _label(ax, label, bool((low > 0).all()))
    for name, label, dash in _BETAS:
        if name in wide:
            axes[2].plot(
                wide.index, wide[name], dash, color=colour, label=label, marker="." if len(wide) < 40 else None
            )
    _label(axes[2], "effective β", True)
    axes[2].legend(frameon=False, fontsize="small")
    return {"smoothness": figure}


def shift_figures(table: "pandas.DataFrame") -> "dict[str, Figure]":
    """After Santurkar et al. (2018), figure 2: ‖G − G'‖₂ and cosine over steps; beside it the shift of activations.

    Args:
        table: Columns step, layer, quantity, value.

    Returns:
        A figure for gradients and one for activations, by tag, where there is a finite value to draw.
    """
    finite = _finite(table)
    figures = {}
    for tag, quantities in _SHIFTS.items():
        drawn = finite[finite["quantity"].isin([name for name, _, _ in quantities])]
        if len(drawn):
            figures[tag] = _by_layer(drawn, quantities)
    return figures


def _by_layer(table: "pandas.DataFrame", quantities: Sequence[tuple[str, str, bool]]) -> "Figure":
    figure, axes = _panels(len(quantities))
    layers = list(dict.fromkeys(table["layer"]))
    colours = dict(zip(layers, _colours(len(layers)), strict=True))
    for ax, (name, label, log) in zip(axes, quantities, strict=True):
        rows = table[table["quantity"] == name]
        for layer, of_layer in rows.groupby("layer", sort=False):
            ax.plot(
                of_layer["step"],
                of_layer["value"],
                color=colours[str(layer)],
                label=plain_text(layer),
                marker="." if len(of_layer) < 40 else None,
            )
        _label(ax, label, log and bool((rows["value"] > 0).any()))
        if "cosine" in name and len(rows):
            # Else an axis of millionths would make a gradient that never turns look restless.
            ax.set_ylim(min(0.9, float(rows["value"].min()) - 0.05), 1.02)
    if len(layers) <= _NAMED_LAYERS:
        axes[-1].legend(title="layer", frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        figure.suptitle(f"{len(layers)} layers, from dark ({layers[0]}) to light ({layers[-1]})", fontsize=10)
    return figure


def _finite(table: "pandas.DataFrame") -> "pandas.DataFrame":
    import numpy as np

    return table[np.isfinite(table["value"])]


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(4.2 * count, 3.4), dpi=_DPI, layout="constrained")
        return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _colours(count: int) -> list[Any]:
    import seaborn as sns

    # From the first layer to the last, so that depth is seen; the lightest end would vanish on white.
    return [sns.color_palette("colorblind")[0]] if count == 1 else list(sns.color_palette("viridis", count + 1))[:-1]


def _label(ax: "Axes", label: str, log: bool) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_xlabel("optimizer step")
    ax.set_ylabel(label)
    if log:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
