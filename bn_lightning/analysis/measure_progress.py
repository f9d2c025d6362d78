"""Progress over the kinds of measurements of a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def measure_progress(units: Mapping[str, int], *, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar for each kind, on the error stream, so that results can be piped.

    Args:
        units: Units of work by kind.
        shown: Whether to show it at all.

    Yields:
        A function to call with the kind whenever one of its units is done.

    Example:
        >>> with measure_progress({"curvature": 2}, shown=False) as advance:
        ...     advance("curvature")
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        tasks = {kind: progress.add_task(kind, total=total) for kind, total in units.items()}

        def advance(kind: str) -> None:
            progress.advance(tasks[kind])

        yield advance
