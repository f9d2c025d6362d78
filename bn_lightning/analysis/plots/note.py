"""A line of text in place of a figure for which there is nothing to draw."""

from matplotlib.figure import Figure

from bn_lightning.analysis.plots.style import REFERENCE_COLOR, house_style
from bn_lightning.figure_text import plain_text


def note_figure(text: str) -> Figure:
    """A figure that says why there is none.

    Args:
        text: One line.

    Returns:
        The figure.

    Example:
        >>> note_figure("No run reached the target.").texts[0].get_text()
        'No run reached the target.'
    """
    with house_style():
        figure = Figure(figsize=(7, 0.8), layout="constrained")
        figure.text(0.02, 0.5, plain_text(text), color=REFERENCE_COLOR, va="center")
    return figure
