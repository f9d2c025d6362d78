"""One statistic over the depth of the network, a line for some of the recorded steps: how a signal travels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bn_lightning.callbacks._activation_monitor.figures import DPI
from bn_lightning.callbacks._activation_monitor.heatmaps import Statistic
from bn_lightning.figure_text import plain_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_LINES = 8
_NAMES = 30


def depth_figure(
    table: "pandas.DataFrame", layers: Sequence[str], *, kind: str, of: str, statistic: Statistic
) -> "Figure":
    """A statistic against the layers in the order of the forward, on a logarithmic axis.

    Source: the figures of vanishing gradients in Glorot & Bengio 2010, section 4.2.

    Args:
        table: Columns step, layer, quantity, value.
        layers: The layers, in the order of the forward.
        kind: What the quantities are of: they are `<kind>_<statistic>`.
        of: What people call that.
        statistic: What to draw; values of 0 and below are left out.

    Returns:
        The figure, with eight lines at most, coloured by step.
    """
    import numpy as np
    import seaborn as sns
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter

    values = table[table["quantity"] == f"{kind}_{statistic.quantity}"]
    values = values.pivot_table(index="layer", columns="step", values="value").reindex(layers) ** statistic.power
    values = values.where(values > 0)
    steps = values.columns.to_numpy()
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, _LINES).round().astype(int))]
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(9, 5.5), dpi=DPI, layout="constrained")
        ax = figure.subplots()
    colours = sns.color_palette("viridis", as_cmap=True)
    norm = Normalize(steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1)
    places = np.arange(len(layers))
    for step in steps:
        # Marks for few layers only, since a line needs two points to be seen.
        marker = "o" if len(layers) <= _NAMES else None
        ax.plot(places, values[step], color=colours(norm(step)), marker=marker, markersize=4, linewidth=1.5)
    ax.set_yscale("log")
    drawn = values[steps].stack().to_numpy()
    if drawn.size and drawn.max() < 10 * drawn.min():
        # Within a decade the axis names minor ticks, in powers of ten that are hard to read.
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    every = -(-len(layers) // _NAMES)
    ax.set_xticks(places[::every], [plain_text(layer) for layer in layers[::every]], rotation=45, ha="right")
    ax.set_ylabel(statistic.title)
    ax.set_xlabel("layer, in the order of the forward")
    ax.set_title(f"{statistic.title[0].upper()}{statistic.title[1:]} of {of} over the depth")
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="optimizer step")
    bar.set_ticks(FixedLocator(steps), labels=[str(step) for step in steps])
    return figure
