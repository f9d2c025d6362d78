"""Tables of a comparison on the terminal."""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from bn_lightning.analysis.number_format import table_text

WIDTH = 200  # where the output is no terminal: folded numbers are hard to read


def show(renderable: Any) -> None:
    """Print something made with rich, as wide as the terminal or, into a file, as wide as tables need."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(renderable)


def show_comparison(summary: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    """Print what a study found.

    Args:
        summary: One row per arm.
        comparisons: One row per comparison with the reference.
    """
    show(as_table(summary.drop(columns="arm"), "Each arm; intervals are 95 % over seeds"))
    if len(comparisons):
        title = "Against the reference, in pairs of equal seeds; ratios above 1 mean faster"
        show(as_table(comparisons.drop(columns=["method", "kind"]), title))


def as_table(table: pd.DataFrame, title: str) -> Table:
    """Make a table for the terminal.

    Args:
        table: Any table; its index is left out.
        title: Words above it.

    Returns:
        A rich table with numbers aligned to the right.
    """
    text = table_text(table)
    shown = Table(title=title, title_justify="left")
    for header, numeric in zip(text.headers, text.numeric, strict=True):
        shown.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in text.rows:
        shown.add_row(*row)
    return shown
