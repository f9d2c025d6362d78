"""All figures of one kind of recorded tensor, at the end of a fit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bn_lightning.callbacks._activation_monitor.depth import depth_figure
from bn_lightning.callbacks._activation_monitor.figures import percentile_figures
from bn_lightning.callbacks._activation_monitor.heatmaps import STATISTICS, heatmap
from bn_lightning.callbacks._activation_monitor.layout import is_gradient
from bn_lightning.callbacks._activation_monitor.ridges import ridge_figures

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.figure import Figure


def draw(
    table: "pandas.DataFrame",
    layers: Sequence[str],
    history: Mapping[str, Mapping[int, "np.ndarray"]],
    *,
    kind: str,
    of: str,
    names: Sequence[str],
) -> dict[str, "Figure"]:
    """Heat maps by layer and step, one statistic by depth, percentile bands and ridge lines.

    Args:
        table: Columns step, layer, quantity, value; finite values only.
        layers: The layers that have values, in the order of the forward.
        history: For each layer its quantiles by step.
        kind: What the quantities are of: they are `<kind>_<statistic>`.
        of: What people call that, in the plural.
        names: Names of the percentiles, ascending.

    Returns:
        Figure by tag: `<kind>_heatmap/<statistic>`, `<kind>_depth/<statistic>` where there are two layers or more,
        `<kind>_percentiles/<page>`, `<kind>_ridges/<page>`.
    """
    if not layers:
        return {}
    present = set(table["quantity"])
    maps = {"norm"} if is_gradient(kind) else set(STATISTICS)
    figures = {
        f"{kind}_heatmap/{name}": heatmap(table, layers, kind=kind, of=of, statistic=statistic)
        for name, statistic in STATISTICS.items()
        if name in maps and f"{kind}_{statistic.quantity}" in present
    }
    if len(layers) > 1:
        name = "norm" if is_gradient(kind) else "std"
        figures[f"{kind}_depth/{name}"] = depth_figure(table, layers, kind=kind, of=of, statistic=STATISTICS[name])
    if not is_gradient(kind):
        pages = percentile_figures(table, layers, quantity=kind, names=names, label=of[:-1])
        figures |= {f"{kind}_percentiles/{page:02d}": figure for page, figure in enumerate(pages)}
        ridges = ridge_figures({layer: kept for layer, kept in history.items() if kept}, of=of[:-1])
        figures |= {f"{kind}_ridges/{page:02d}": figure for page, figure in enumerate(ridges)}
    return figures
