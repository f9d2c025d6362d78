"""Figures of one run's activation table: percentile bands over steps, and variance by layer and step.

seaborn is imported when a figure is drawn. Figures are never made through pyplot, so no backend is
chosen and nothing has to be closed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_PANELS = 24
_COLUMNS = 3
# TensorBoard scales figures down to its cards; one look at full size must be sharp.
_DPI = 150
_MAX_CELLS = 60


def percentile_figures(
    table: "pandas.DataFrame", layers: Sequence[str], *, quantity: str, names: Sequence[str], label: str
) -> list["Figure"]:
    """A band between the outer percentiles and a line at each inner one, over steps, one panel a layer.

    Args:
        table: Columns step, layer, quantity, value.
        layers: The layers to draw, in order.
        quantity: What the percentiles are of: the quantities are `<quantity>_<name>`.
        names: Names of the percentiles, ascending.
        label: Of the vertical axis.

    Returns:
        As many figures as needed at 24 panels each.
    """
    return [
        _page(table, layers[start : start + _PANELS], quantity, names, label)
        for start in range(0, len(layers), _PANELS)
    ]


def _page(
    table: "pandas.DataFrame", layers: Sequence[str], quantity: str, names: Sequence[str], label: str
) -> "Figure":
    import seaborn as sns
    from matplotlib.figure import Figure

    columns = min(len(layers), _COLUMNS)
    rows = -(-len(layers) // columns)
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(1.2 + 3 * columns, 1.1 + 2.3 * rows), dpi=_DPI, layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        colour = sns.color_palette("colorblind")[0]
        for number, (layer, ax) in enumerate(zip(layers, axes.flat, strict=False)):
            wide = table[table["layer"] == layer].pivot_table(index="step", columns="quantity", values="value")
            bands = [wide[f"{quantity}_{name}"] for name in names]
            if len(bands) > 1:
                ax.fill_between(wide.index, bands[0], bands[-1], color=colour, alpha=0.25, linewidth=0)
            for band in bands[1:-1] or bands:
                # A line needs two points to be seen.
                marker = "o" if len(band) == 1 else None
                sns.lineplot(x=band.index, y=band.to_numpy(), ax=ax, color=colour, errorbar=None, marker=marker)
            ax.set_title(_as_text(layer))
            lowest = number >= len(layers) - columns
            ax.set_xlabel("optimizer step" if lowest else "")
            ax.tick_params(labelbottom=lowest)
            ax.set_ylabel(label if number % columns == 0 else "")
        for ax in axes.flat[len(layers) :]:
            ax.set_axis_off()
        line = ", ".join(names[1:-1] or names)
        figure.suptitle(f"line {line}" + (f", band {names[0]} to {names[-1]}" if len(names) > 1 else ""), fontsize=11)
    return figure


def variance_heatmap(table: "pandas.DataFrame", layers: Sequence[str], *, quantity: str) -> "Figure":
    """Standard deviation by layer (top down) and step (left to right), on a logarithmic colour scale.

    Args:
        table: Columns step, layer, quantity, value.
        layers: The layers to draw, in order.
        quantity: The quantity that holds the variance.

    Returns:
        The figure.
    """
    import numpy as np
    import seaborn as sns
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    values = table[table["quantity"] == quantity].pivot_table(index="layer", columns="step", values="value")
    values = values.reindex(layers) ** 0.5
    if values.shape[1] > _MAX_CELLS:
        values = values.iloc[:, np.linspace(0, values.shape[1] - 1, _MAX_CELLS).round().astype(int)]
    values.index = values.index.map(_as_text)
    cells = values.to_numpy()
    positive = cells[np.isfinite(cells) & (cells > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    figure = Figure(figsize=(9, 1.9 + 0.32 * len(layers)), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    sns.heatmap(
        values,
        ax=ax,
        norm=LogNorm(low, high if high > low else low * 1.01),
        cmap="viridis",
        cbar=False,
        yticklabels=True,
        xticklabels=max(1, values.shape[1] // 10),
    )
    bar = figure.colorbar(
        ax.collections[0],
        ax=ax,
        label="standard deviation",
        ticks=LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5),
        format=FuncFormatter(lambda value, _: f"{value:g}"),
    )
    # The bar adds minor ticks of its own, with labels in powers of ten.
    bar.minorticks_off()
    ax.set_title("Standard deviation of pre-activations")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("")
    ax.tick_params(axis="both", rotation=0)
    return figure


def _as_text(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return name.replace("$", r"\$")
