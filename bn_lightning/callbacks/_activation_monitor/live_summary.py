"""A table of the newest statistics of every layer, on the console while a model trains.

How it is shown depends on what is there already, since a terminal has one place that can be redrawn:

- beside a RichProgressBar the table is part of the bar's own display, under the bars;
- beside another bar (Lightning's default is tqdm's) it is printed above the bar, at most every ten seconds: erasing an
  earlier one would erase whatever was printed in between;
- without a bar it is redrawn in place, under what is printed;
- where there is no terminal, as in a log file, it is printed once, at the end.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.errors import LiveError
from rich.live import Live
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped] # comes with Lightning, without stubs

from bn_lightning.callbacks._activation_monitor.quantities import flatness
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import is_two_sided
from bn_lightning.probes.recording import percentile_name

if TYPE_CHECKING:
    from rich.progress import Progress

    from bn_lightning.callbacks._compat import Trainer

MOST_ROWS = 20
SECONDS_BETWEEN = 10.0
"""Between two tables that are printed above a bar."""
_CONSPICUOUS = 0.1
# Of a table beside its rows, and of progress bars beside the table: what is taller than a terminal is cut off.
_OTHER_LINES = 9

Statistics = Sequence[tuple[Series, ActivationSummary]]


class LiveSummary:
    """Shows one table, with the newest statistics; on rank zero only.

    Args:
        percentiles: Percentages, ascending.
        console: Where to; None for rich's own console, which RichProgressBar writes to as well.
        title: What the table is called.
    """

    def __init__(self, percentiles: Sequence[float], *, console: Console | None, title: str) -> None:
        self._percentiles = tuple(percentiles)
        self._given = console
        self._title = title
        self._table: Table | None = None
        self._live: Live | None = None
        self._beside: Progress | None = None
        self._printed_at = -math.inf
        self._is_shown = True

    def show(self, trainer: "Trainer", step: int, statistics: Statistics) -> None:
        """Show the statistics of a step.

        Args:
            trainer: The Trainer, for its progress bar.
            step: The optimizer step.
            statistics: Each series with its summary; gradients are left out.
        """
        if not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback
        progress: Progress | None = getattr(bar, "progress", None)
        console = self._console(progress)
        is_redrawn = console.is_terminal and not console.is_dumb_terminal
        most_rows = min(MOST_ROWS, max(3, console.height - _OTHER_LINES)) if is_redrawn else MOST_ROWS
        title = f"{self._title} at step {step}"
        self._table = summary_table(statistics, self._percentiles, title=title, most_rows=most_rows)
        self._is_shown = False
        if not is_redrawn:
            return
        if progress is not None and progress.console is console:
            self._show_beside(progress)
        elif bar is None or getattr(bar, "is_disabled", False):
            self._show_live(console)
        else:
            self._show_above(console)

    def close(self, trainer: "Trainer") -> None:
        """Leave the newest table on the console; a second call does nothing.

        Args:
            trainer: The Trainer.
        """
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif not self._is_shown:
            self._print(self._console(getattr(trainer.progress_bar_callback, "progress", None)))
        # A RichProgressBar draws its last frame, with the table, when it stops.
        self._is_shown = True

    def _console(self, progress: "Progress | None") -> Console:
        import rich

        return self._given or (rich.get_console() if progress is None else progress.console)

    def _show_beside(self, progress: "Progress") -> None:
        # RichProgressBar makes a new display for each stage, and with leave=True for each epoch.
        if progress is not self._beside:
            self._beside = progress
            _put_under(progress, lambda: self._table or "")
        self._is_shown = True
        progress.refresh()

    def _show_live(self, console: Console) -> None:
        if self._live is None:
            live = Live(console=console, auto_refresh=False)
            try:
                live.start()
            except LiveError:  # before rich 14.1 a console has one, and somebody else has it
                self._show_above(console)
                return
            self._live = live
        self._is_shown = True
        self._live.update(self._table or "", refresh=True)

    def _show_above(self, console: Console) -> None:
        if time.monotonic() - self._printed_at >= SECONDS_BETWEEN:
            self._print(console)

    def _print(self, console: Console) -> None:
        # Bars are taken off the screen while something is printed above them.
        with tqdm.external_write_mode(console.file):
            console.print(self._table)
        self._printed_at, self._is_shown = time.monotonic(), True


def _put_under(progress: "Progress", renderable: Callable[[], RenderableType]) -> None:
    original: Any = progress.get_renderables
    vars(progress)["get_renderables"] = lambda: (*original(), Group(renderable()))


def summary_table(
    statistics: Statistics, percentiles: Sequence[float], *, title: str, most_rows: int = MOST_ROWS
) -> Table:
    """The statistics of a step in a table.

    Where there are more layers the most conspicuous are shown, in this order: with non-finite values, by the share of
    dead channels or of saturated elements from 10 % on, by how far the standard deviation is from that of the middle
    layer.

    Args:
        statistics: Each series with its summary; gradients and what did not run are left out.
        percentiles: Percentages, ascending.
        title: Title of the table.
        most_rows: How many layers are shown.

    Returns:
        The table.
    """
    ran = [(one, summary) for one, summary in statistics if summary.count or summary.nonfinite]
    rows = [pair for pair in ran if not pair[0].is_gradient]
    left_out = max(0, len(rows) - most_rows)
    if left_out:
        rows = _most_conspicuous(rows, most_rows)
    caption = f"{left_out} more layers, less conspicuous, are left out" if left_out else None
    # Narrow: all of it fits into 80 columns.
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("layer", overflow="fold", min_width=13)  # "preactivation"
    for name in ("mean", "std", *map(percentile_name, percentiles), "sat.", "dead", "NaN/inf"):
        table.add_column(name, justify="right", no_wrap=True)
    several = len({series.kind for series, _ in rows}) > 1
    for series, summary in rows:
        numbers = (summary.mean, math.sqrt(summary.variance), *summary.percentiles(percentiles))
        table.add_row(
            f"{series.label} {series.kind}" if several else series.label,
            *(_number(value) for value in numbers),
            *(_share(value) for value in flatness(series, summary).values()),
            str(summary.nonfinite) if summary.nonfinite else "",
            style="red" if summary.nonfinite else None,
        )
    return table


def _most_conspicuous(rows: Statistics, number: int) -> list[tuple[Series, ActivationSummary]]:
    logs = {at: math.log(summary.variance) for at, (_, summary) in enumerate(rows) if summary.variance > 0}
    middle = sorted(logs.values())[len(logs) // 2] if logs else 0.0

    def oddness(at: int) -> tuple[bool, float, float]:
        series, summary = rows[at]
        return bool(summary.nonfinite), _flat(series, summary), abs(logs.get(at, math.inf) - middle)

    order = sorted(range(len(rows)), key=oddness, reverse=True)
    return [rows[at] for at in order[:number]]


def _flat(series: Series, summary: ActivationSummary) -> float:
    shares = flatness(series, summary)
    if not is_two_sided(series.op):
        del shares["saturated"]  # a ReLU that sets half of its inputs to 0 is nothing odd
    # What the tails of any distribution reach is nothing odd either.
    return max((share for share in shares.values() if share >= _CONSPICUOUS), default=0.0)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
