"""Figures as files and as pictures inside a page."""

import base64
import io

import matplotlib as mpl
from matplotlib.figure import Figure

PNG_DPI = 200  # twice what a screen shows, for print and dense displays
MAX_SVG_BYTES = 1_500_000  # past this a browser scrolls heavily, and pixels are the better picture


def figure_png(figure: Figure) -> bytes:
    """Draw a figure as a PNG at twice the screen's resolution.

    Args:
        figure: The figure.

    Returns:
        The file's bytes.

    Example:
        >>> figure_png(Figure(figsize=(1, 1)))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white")
    return buffer.getvalue()


def figure_svg(figure: Figure) -> bytes:
    """Draw a figure as an SVG; letters become outlines, so that it looks alike on every machine.

    Args:
        figure: The figure.

    Returns:
        The file's bytes: equal figures give equal bytes.

    Example:
        >>> b"<svg" in figure_svg(Figure(figsize=(1, 1)))
        True
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "bn-lightning"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def figure_data_uri(figure: Figure) -> str:
    """Draw a figure as a `data:` address for the src of an img, which needs no other file.

    Args:
        figure: The figure.

    Returns:
        An SVG, or a PNG where the SVG would be too large for a page.

    Example:
        >>> figure_data_uri(Figure(figsize=(1, 1)))[:26]
        'data:image/svg+xml;base64,'
    """
    svg = figure_svg(figure)
    if len(svg) <= MAX_SVG_BYTES:
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    return "data:image/png;base64," + base64.b64encode(figure_png(figure)).decode("ascii")
