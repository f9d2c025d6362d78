"""Percentile bands of layers and units over optimizer steps, from one run's activation table.

seaborn is imported when a figure is drawn. Figures are never made through pyplot, so no backend is
chosen and nothing has to be closed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bn_lightning.figure_text import plain_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_PANELS = 24
_COLUMNS = 3
# TensorBoard scales figures down to its cards; one look at full size must be sharp.
DPI = 150


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
        figure = Figure(figsize=(1.2 + 3 * columns, 1.1 + 2.3 * rows), dpi=DPI, layout="constrained")
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
            ax.set_title(plain_text(layer))
            lowest = number >= len(layers) - columns
            ax.set_xlabel("optimizer step" if lowest else "")
            ax.tick_params(labelbottom=lowest)
            ax.set_ylabel(label if number % columns == 0 else "")
        for ax in axes.flat[len(layers) :]:
            ax.set_axis_off()
        line = ", ".join(names[1:-1] or names)
        figure.suptitle(f"line {line}" + (f", band {names[0]} to {names[-1]}" if len(names) > 1 else ""), fontsize=11)
    return figure
