"""The figures of one measured checkpoint."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_lightning.analysis.plots.layers import ACTIVATION_SHIFT, GRADIENT_SHIFT, plot_over_depth
from bn_lightning.analysis.plots.standard import figure_of
from bn_lightning.analysis.plots.surfaces import plot_eigenvalues, plot_loss_line, plot_loss_plane

LINES = {
    "gradient": "step size down the gradient",
    "random": "multiple of a random direction",
    "interpolation": "from this checkpoint (0) to the other (1)",
}


def measure_figures(table: pd.DataFrame, points: pd.DataFrame) -> dict[str, Figure]:
    """Draw what there is to draw.

    Args:
        table: Numbers in the long format.
        points: Points of lines and planes.

    Returns:
        Figures by name: eigenvalues, gradient, random, interpolation, plane, shift; those without a finite value are
        left out.

    Example:
        >>> from bn_lightning.analysis.measure_rows import MeasureRows
        >>> rows = MeasureRows("last", 9)
        >>> rows.add({"hessian_eigenvalue_1_train": 2.0})
        >>> list(measure_figures(rows.table(), rows.points()))
        ['eigenvalues']
    """
    drawings: dict[str, Callable[[], Axes]] = {}
    finite = table[np.isfinite(table["value"])]
    if finite["quantity"].str.startswith("hessian_eigenvalue_").any():
        drawings["eigenvalues"] = lambda: plot_eigenvalues(table)
    drawable = set(points.loc[np.isfinite(points["loss"]), "surface"])
    for name, words in LINES.items():
        if name in drawable:
            drawings[name] = lambda name=name, words=words: plot_loss_line(points, name, xlabel=words)  # type: ignore[misc] # mypy infers no default
    if "plane" in drawable:
        drawings["plane"] = lambda: plot_loss_plane(points)[0]
    shifts = {**GRADIENT_SHIFT, **dict.fromkeys(list(ACTIVATION_SHIFT)[:1], "W₁ / std of pre-activations")}
    if finite["quantity"].isin(list(shifts)).any():
        drawings["shift"] = lambda: plot_over_depth(table, shifts)[0]
    return {name: figure_of(draw()) for name, draw in drawings.items()}
