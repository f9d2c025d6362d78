"""A table of text as a figure, for numbers that are read beside published ones."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bn_lightning.analysis.plots.style import REFERENCE_COLOR, house_style
from bn_lightning.figure_text import plain_text

ROW_HEIGHT, CHARACTER_WIDTH = 0.28, 0.082  # inches
PADDING = 3  # characters between columns


def draw_text_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, muted: Sequence[int] = (), note: str = ""
) -> Figure:
    """Draw a table with a rule below its headers; columns are as wide as their longest text.

    Args:
        headers: One a column.
        rows: Text of every cell, row by row.
        muted: Places of columns in grey, such as those of other authors.
        note: A line below the table.

    Returns:
        The figure.

    Raises:
        ValueError: If a row has not as many cells as there are headers.

    Example:
        >>> len(draw_text_table(["arm", "steps"], [["plain", "900"]]).texts)
        4
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"A table of {len(headers)} columns has as many texts in each row, not {len(row)}: {row}.")
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) + PADDING for column in columns]
    height = ROW_HEIGHT * (len(rows) + 1 + bool(note) + 0.6)
    width = CHARACTER_WIDTH * sum(widths)
    with house_style():
        figure = Figure(figsize=(width, height))
        left = 0.5 * CHARACTER_WIDTH / width
        for place, (column, size) in enumerate(zip(columns, widths, strict=True)):
            # Names to the left, numbers to the right.
            start, end = left, left + CHARACTER_WIDTH * (size - PADDING) / width
            for line, text in enumerate(column):
                figure.text(
                    end if place else start,
                    1 - ROW_HEIGHT * (line + 0.6 + 0.25 * bool(line)) / height,
                    plain_text(text),
                    ha="right" if place else "left",
                    va="center",
                    fontsize=9,
                    fontweight="normal" if line else "bold",
                    color=REFERENCE_COLOR if place in muted else "black",
                )
            left += CHARACTER_WIDTH * size / width
        rule = 1 - ROW_HEIGHT * 1.15 / height
        figure.add_artist(Line2D([0.005, 0.995], [rule, rule], color=REFERENCE_COLOR, lw=0.8))
        if note:
            figure.text(0.5 * CHARACTER_WIDTH / width, ROW_HEIGHT * 0.5 / height, note, fontsize=8, va="center")
    return figure
