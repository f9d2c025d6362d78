"""Heat maps of a run's activation table: one statistic by layer (top down) and optimizer step (left to right)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bn_lightning.callbacks._activation_monitor.figures import DPI
from bn_lightning.figure_text import plain_text

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.figure import Figure

_MAX_CELLS = 60
# Beyond this height a card of TensorBoard shows only strips; rows get thinner and some lose their name.
_MAX_INCHES = 12.0


@dataclass(frozen=True)
class Statistic:
    """How one statistic is drawn.

    Attributes:
        quantity: Its name in the table, without the kind.
        title: What it is called.
        scale: "log" for positive numbers over decades, "share" for 0 … 1, "signed" for numbers around 0.
        power: What values are raised to first: 0.5 makes a deviation of a variance.
    """

    quantity: str
    title: str
    scale: Literal["log", "share", "signed"]
    power: float = 1.0


STATISTICS = {
    "std": Statistic("var", "standard deviation", "log", 0.5),
    "mean": Statistic("mean", "mean", "signed"),
    "saturated": Statistic("saturated", "saturated share", "share"),
    "dead": Statistic("dead", "dead share", "share"),
    "skewness": Statistic("skewness", "skewness", "signed"),
    "kurtosis": Statistic("kurtosis", "excess kurtosis", "signed"),
    "norm": Statistic("norm", "norm", "log"),
}
"""The heat maps, by the last part of their tag."""


def heatmap(table: "pandas.DataFrame", layers: Sequence[str], *, kind: str, of: str, statistic: Statistic) -> "Figure":
    """One statistic by layer and step.

    Args:
        table: Columns step, layer, quantity, value.
        layers: The layers to draw, in order.
        kind: What the quantities are of: they are `<kind>_<statistic>`.
        of: What people call that.
        statistic: What to draw.

    Returns:
        The figure; a cell without a finite value stays grey.
    """
    import numpy as np
    import seaborn as sns
    from matplotlib.figure import Figure

    values = table[table["quantity"] == f"{kind}_{statistic.quantity}"]
    values = values.pivot_table(index="layer", columns="step", values="value").reindex(layers) ** statistic.power
    if values.shape[1] > _MAX_CELLS:
        values = values.iloc[:, np.linspace(0, values.shape[1] - 1, _MAX_CELLS).round().astype(int)]
    values.index = values.index.map(plain_text)
    cells = values.to_numpy()
    options, ticks = _colours(cells[np.isfinite(cells)], statistic.scale)
    figure = Figure(figsize=(9, min(1.9 + 0.32 * len(layers), _MAX_INCHES)), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("0.8")
    # A zero has no place on a logarithmic scale.
    shown = values.where(values > 0) if statistic.scale == "log" else values
    sns.heatmap(
        shown, ax=ax, cbar=False, yticklabels=_every(len(layers)), xticklabels=max(1, values.shape[1] // 10), **options
    )
    # Values past a robust bound take the colour at its end, which the bar's arrows say.
    beyond = "both" if statistic.scale == "signed" else "neither"
    bar = figure.colorbar(ax.collections[0], ax=ax, label=statistic.title, extend=beyond, **ticks)
    # The bar adds minor ticks of its own, with labels in powers of ten.
    bar.minorticks_off()
    ax.set_title(f"{statistic.title[0].upper()}{statistic.title[1:]} of {of}")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("")
    ax.tick_params(axis="both", rotation=0)
    return figure


def _every(layers: int) -> int:
    # A name needs 0.2 inches.
    return max(1, round(layers * 0.2 / (_MAX_INCHES - 1.9) + 0.4999))


def _colours(finite: "np.ndarray", scale: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `seaborn.heatmap` and of the colour bar."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if scale == "share":
        return {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}, {"format": plain}
    if scale == "signed":
        # One layer's outlier would leave all others pale.
        most = float(np.percentile(np.abs(finite), 98)) if finite.size else 0.0
        bound = most or float(np.abs(finite).max(initial=0.0)) or 1.0
        return {"cmap": "vlag", "vmin": -bound, "vmax": bound}, {"format": plain, "ticks": MaxNLocator(5)}
    positive = finite[finite > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    locator = LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)) if high > 10 * low else MaxNLocator(5)
    high = high if high > low else low * 1.01
    # seaborn would look for bounds itself, and warns where no cell has a value.
    colours = {"cmap": "viridis", "norm": LogNorm(low, high), "vmin": low, "vmax": high}
    return colours, {"format": plain, "ticks": locator}
