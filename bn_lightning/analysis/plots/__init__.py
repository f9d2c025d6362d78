"""Table in, Axes out; nothing here trains, and pyplot holds none of the figures."""

from bn_lightning.analysis.plots.curves import plot_curves
from bn_lightning.analysis.plots.differences import plot_differences
from bn_lightning.analysis.plots.heatmap import plot_heatmap
from bn_lightning.analysis.plots.percentiles import plot_percentile_bands
from bn_lightning.analysis.plots.standard import standard_figures
from bn_lightning.analysis.plots.targets import plot_steps_to_target

__all__ = [
    "plot_curves",
    "plot_differences",
    "plot_heatmap",
    "plot_percentile_bands",
    "plot_steps_to_target",
    "standard_figures",
]
