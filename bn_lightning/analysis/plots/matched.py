"""One quantity against another, such as smoothness against the loss, to compare runs at one stage of training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bn_lightning.analysis.plots.selection import Arms, arm_labels, select_quantity
from bn_lightning.analysis.plots.style import SEED_ALPHA, arm_styles, house_style, legend_above, own_axes

BINS = 10
FEWEST = 3  # values that a median is drawn of


def plot_matched(
    results: pd.DataFrame,
    x: str,
    y: str,
    *,
    arms: Arms = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity of the whole model against another measured in the same step, and medians over bins.

    A marker is one step of one run. The line joins the medians of an arm's values in ten bins of equal width of `x`
    (of its logarithm, where all values are positive), for bins with three values or more. The horizontal axis runs
    from large to small, so a loss falls to the right.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        x: The quantity to match by.
        y: The quantity to compare.
        arms: All arms of the study in order (or name → label), so that colours agree between figures.
        xlabel: Words for the horizontal axis; by default the quantity's name with spaces.
        ylabel: The same for the vertical axis.
        ax: Axes to draw on; by default those of a new figure that pyplot does not hold (`.figure` saves it).

    Returns:
        The axes; logarithmic where all values are positive.

    Raises:
        ValueError: If a quantity is missing, or there is no step at which both are finite.

    Example:
        >>> rows = [("none", 0, step, "", name, 1.0 + step) for step in range(4) for name in ("loss", "beta")]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> plot_matched(table, "loss", "beta").get_xscale()
        'log'
    """
    keys = ["arm", "seed", "step"]
    one, other = (select_quantity(results, name)[[*keys, "value"]] for name in (x, y))
    pairs = one.merge(other, on=keys, suffixes=("_x", "_y"))
    pairs = pairs[np.isfinite(pairs["value_x"]) & np.isfinite(pairs["value_y"])]
    if pairs.empty:
        raise ValueError(f"There is no step at which {x!r} and {y!r} are both finite: there is nothing to draw.")
    labels = arm_labels(pairs, arms)
    styles = arm_styles(list(labels))
    log_x = bool((pairs["value_x"] > 0).all())
    edges = _edges(pairs["value_x"].to_numpy(float), log=log_x)
    with house_style():
        ax = own_axes(ax, width=5.0, height=3.8)
        for arm, label in labels.items():
            own = pairs[pairs["arm"].astype(str) == arm]
            style = styles[arm]
            ax.plot(
                own["value_x"],
                own["value_y"],
                ls="",
                marker=style.marker,
                ms=3,
                color=style.color,
                alpha=SEED_ALPHA,
                mew=0,
                gid="step",
            )
            middles, medians = _medians(own, edges, log=log_x)
            ax.plot(
                middles,
                medians,
                color=style.color,
                ls=style.dash,
                lw=2,
                # A single bin makes no line.
                marker=style.marker if len(middles) == 1 else None,
                label=label,
                gid="median",
            )
        if log_x:
            ax.set_xscale("log")
        if (pairs["value_y"] > 0).all():
            ax.set_yscale("log")
        ax.invert_xaxis()
        ax.set_xlabel(xlabel or x.replace("_", " "))
        ax.set_ylabel(ylabel or y.replace("_", " "))
        legend_above(ax)
    return ax


def _edges(values: np.ndarray, *, log: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (np.geomspace if log else np.linspace)(low, high, BINS + 1)


def _medians(pairs: pd.DataFrame, edges: np.ndarray, *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    middles = np.sqrt(edges[1:] * edges[:-1]) if log else (edges[1:] + edges[:-1]) / 2
    # The inner edges alone, so that the smallest and the largest value are in the outer bins.
    bins = np.searchsorted(edges[1:-1], pairs["value_x"].to_numpy(float), side="right")
    values = pairs["value_y"].to_numpy(float)
    full = [number for number in range(BINS) if (bins == number).sum() >= FEWEST]
    return middles[full], np.array([np.median(values[bins == number]) for number in full])
