"""Ridge lines: the distribution of a layer at one optimizer step above that at the step before."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bn_lightning.callbacks._activation_monitor.figures import DPI
from bn_lightning.callbacks._activation_monitor.history import PERCENTAGES
from bn_lightning.callbacks._activation_monitor.layout import spread
from bn_lightning.figure_text import plain_text

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 12
# A page takes about a second; a deep network's neighbours look alike, and its other figures show every layer.
_LAYERS = 24
_COLUMNS = 3
_ROWS = 24
_POINTS = 128
# How many rows up the highest ridge of a panel reaches.
_OVERLAP = 3.0


def ridge_figures(history: Mapping[str, Mapping[int, "np.ndarray"]], *, of: str) -> list["Figure"]:
    """Ridge lines over steps, the first step on top, one panel a layer.

    Args:
        history: For each layer, in order, its quantiles by step, at `PERCENTAGES`.
        of: What people call what is recorded.

    Returns:
        As many figures as needed at 12 panels each, of 24 layers at most, evenly spread over the depth; in a panel 24
        steps at most, evenly spread.
    """
    layers = spread(list(history), _LAYERS)
    title = f"Density of {of}s over training, from the first recorded step down"
    if len(layers) < len(history):
        title += f" ({len(layers)} of {len(history)} layers)"
    return [
        _page({layer: history[layer] for layer in layers[start : start + _PANELS]}, of, title)
        for start in range(0, len(layers), _PANELS)
    ]


def _page(history: Mapping[str, Mapping[int, "np.ndarray"]], of: str, title: str) -> "Figure":
    import seaborn as sns
    from matplotlib.figure import Figure

    columns = min(len(history), _COLUMNS)
    rows = -(-len(history) // columns)
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(1.2 + 3.2 * columns, 0.8 + 3.4 * rows), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for number, (ax, (layer, quantiles)) in enumerate(zip(axes.flat, history.items(), strict=False)):
            _panel(ax, quantiles)
            ax.set_title(plain_text(layer))
            ax.set_xlabel(of if number >= len(history) - columns else "")
            ax.set_ylabel("optimizer step" if number % columns == 0 else "")
        for ax in axes.flat[len(history) :]:
            ax.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure


def _panel(ax: "Axes", quantiles: Mapping[int, "np.ndarray"]) -> None:
    import numpy as np
    import seaborn as sns
    from matplotlib.collections import PolyCollection

    steps = [int(step) for step in spread([str(step) for step in quantiles], _ROWS)]
    low = min(float(quantiles[step][0]) for step in steps)
    high = max(float(quantiles[step][-1]) for step in steps)
    margin = 0.05 * (high - low) or max(abs(low), 1.0) * 0.5
    grid = np.linspace(low - margin, high + margin, _POINTS)
    ridges = np.stack([density(quantiles[step], grid) for step in steps])
    # One height for all steps, so that areas compare; a spike (a constant layer) may stick out.
    ridges *= _OVERLAP / (np.percentile(ridges.max(1), 75) or 1.0)
    ridges = ridges.clip(max=2 * _OVERLAP)
    colours = sns.color_palette("viridis", len(steps))
    for row, (ridge, colour) in enumerate(zip(ridges, colours, strict=True)):
        base = len(steps) - 1 - row
        outline = [(grid[0], base), *zip(grid, base + ridge, strict=True), (grid[-1], base)]
        # Later rows lie in front of earlier ones.
        patch = PolyCollection([outline], facecolors=[(*colour, 0.85)], edgecolors="white", linewidths=0.5, zorder=row)
        ax.add_collection(patch)
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(-0.3, float((ridges.max(1) + np.arange(len(steps))[::-1]).max()) + 0.3)
    named = np.unique(np.linspace(0, len(steps) - 1, 6).round().astype(int))
    ax.set_yticks([len(steps) - 1 - row for row in named], [str(steps[row]) for row in named])
    sns.despine(ax=ax, left=True)
    ax.tick_params(left=False)


def density(quantiles: "np.ndarray", grid: "np.ndarray") -> "np.ndarray":
    """The density that quantiles stand for, smoothed a little.

    The distribution function is linear between quantiles; its differences over the grid are smoothed by a normal
    kernel of three points' width, which is narrower than any structure 64 quantiles can show.

    Args:
        quantiles: At `PERCENTAGES`, ascending, `[64]`.
        grid: Equally spaced, `[n]`.

    Returns:
        `[n]`; the sum times the spacing is 1, up to what the smoothing moves past the ends.
    """
    import numpy as np

    spacing = grid[1] - grid[0]
    edges = np.append(grid - spacing / 2, grid[-1] + spacing / 2)
    shares = np.array([0.0, *PERCENTAGES, 100.0]) / 100
    # The half share beyond an outer quantile is drawn at that quantile: how far a tail reaches is not known.
    places = np.concatenate([quantiles[:1], quantiles, quantiles[-1:]]).astype(np.float64)
    mass = np.diff(np.interp(edges, places, shares, left=0.0, right=1.0))
    kernel = np.exp(-0.5 * (np.arange(-9, 10) / 3.0) ** 2)
    return np.convolve(mass, kernel / kernel.sum(), mode="same") / spacing
