"""How every figure of a study looks: one colour, dash and marker per arm, the same in all of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008), "Color Universal Design": distinguishable with every common colour vision deficiency. Yellow is
# left out, because lines of it vanish on white; sky blue and orange come last, because they are the lightest.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#444444", "#56B4E9", "#E69F00")
_DASHES = ("-", (0, (5, 1.8)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Dash = str | tuple[int, tuple[float, ...]]

SEED_ALPHA = 0.4  # single seeds stand behind their mean
BAND_ALPHA = 0.2
REFERENCE_COLOR = "#555555"  # targets, zero lines and notes: not an arm
CHARACTERS_PER_INCH = 11  # of the legend's font, with room to spare: decides how many columns a legend has


@dataclass(frozen=True)
class ArmStyle:
    """What marks one arm in a figure; colour is never the only difference between two arms.

    Args:
        color: Hexadecimal colour.
        dash: Matplotlib line style.
        marker: Matplotlib marker.
    """

    color: str
    dash: Dash
    marker: str


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """Give every arm its colour, dash and marker, by its place in the study.

    Figures of one study look alike when each is given the study's arms, in the study's order, even those that the
    figure does not draw. The counts of colours and dashes share no divisor, so their first 28 pairs differ.

    Args:
        arms: Names of all arms of the study, in order.

    Returns:
        A style for each name.

    Raises:
        ValueError: If there are more arms than distinguishable styles.

    Example:
        >>> styles = arm_styles(["none", "before", "after"])
        >>> styles["none"].color, styles["before"].color
        ('#0072B2', '#D55E00')
    """
    limit = len(_COLORS) * len(_DASHES)
    if len(arms) > limit:
        raise ValueError(
            f"{len(arms)} arms were to be told apart in one figure, at most {limit} can be; "
            "draw fewer of them by passing arms=."
        )
    return {
        arm: ArmStyle(_COLORS[i % len(_COLORS)], _DASHES[i % len(_DASHES)], _MARKERS[i % len(_MARKERS)])
        for i, arm in enumerate(arms)
    }


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the package's fonts, spines and grid; matplotlib's own settings come back on exit."""
    settings: dict[Any, Any] = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper", font_scale=1.15),
        "font.family": ["sans-serif"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#444444",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "lines.solid_capstyle": "butt",
    }
    with mpl.rc_context(settings):
        yield


def own_axes(ax: Axes | None, *, width: float = 7.0, height: float = 4.0) -> Axes:
    """Return `ax`, or the axes of a new figure that pyplot does not know, so that nothing has to be closed.

    Args:
        ax: Axes to draw on, or None for new ones.
        width: Width of a new figure in inches.
        height: Height of a new figure in inches.

    Returns:
        The axes.
    """
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def legend_above(ax: Axes, *, title: str | None = None, handles: Sequence[Artist] | None = None) -> None:
    """Put the legend over the axes, where it cannot hide data, in as many columns as its words leave room for.

    Args:
        ax: Axes with labelled artists.
        title: What the figure shows, in words; stands above the entries.
        handles: Artists to list; by default the labelled ones.
    """
    entries = list(handles) if handles is not None else ax.get_legend_handles_labels()[0]
    figure = ax.get_figure(root=True)
    width = figure.get_size_inches()[0] if figure is not None else 7.0
    lengths = [len(str(entry.get_label())) for entry in entries]
    columns = _columns_that_fit(lengths, int(width * CHARACTERS_PER_INCH))
    legend = ax.legend(
        handles=entries,
        title=title,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
        ncols=columns,
        borderaxespad=0.0,
        borderpad=0.2,
        handlelength=2.6,
    )
    legend.get_title().set_color(REFERENCE_COLOR)


def _columns_that_fit(lengths: Sequence[int], width: int) -> int:
    """The most columns whose widest entries, with 8 characters for a handle and a gap, fit side by side."""
    for columns in range(len(lengths), 1, -1):
        # As evenly as matplotlib deals entries out to the columns of a legend.
        widest = [int(part.max()) + 8 for part in np.array_split(np.array(lengths), columns)]
        if sum(widest) <= width:
            return columns
    return 1
