"""A progress bar over the cells of a study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bn_lightning.analysis.cell import Outcome


@contextmanager
def cell_progress(name: str, *, total: int, finished: int, shown: bool) -> Iterator[Callable[[Outcome], None]]:
    """Show how many cells are finished, how long it took and about how long the rest will take.

    Args:
        name: Words before the bar.
        total: Number of cells.
        finished: How many were finished before.
        shown: Whether to show it at all.

    Yields:
        A function to call with every outcome; it prints the ones that failed.
    """
    counts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*counts, *times, disable=not shown) as progress:
        task = progress.add_task(name, total=total, completed=finished)

        def advance(outcome: Outcome) -> None:
            if outcome.status == "failed" and shown:
                text = escape(f"{outcome.arm}, seed {outcome.seed} failed: {outcome.error}")
                progress.console.print(f"[red]{text}[/]")
            progress.advance(task)

        yield advance
