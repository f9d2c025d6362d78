"""A progress bar over batches on standard error; rich is imported only where one is shown."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def batch_progress(batches: Iterable[Any], *, num_batches: int | None, shown: bool) -> Iterator[Iterable[Any]]:
    """Show how many of the batches have been read, and about how long the rest will take.

    Args:
        batches: Batches; without a length the end is not known.
        num_batches: How many of them will be read at most; None for all.
        shown: Whether to show anything.

    Yields:
        The batches, to be read instead.

    Example:
        >>> with batch_progress([1, 2], num_batches=None, shown=False) as batches:
        ...     list(batches)
        [1, 2]
    """
    if not shown:
        yield batches
        return
    from rich.console import Console
    from rich.progress import Progress

    known = [number for number in (_length(batches), num_batches) if number is not None]
    with Progress(console=Console(stderr=True)) as bar:
        # Without a length the number to be read at most is the best guess; a generator is not asked for its length.
        yield bar.track(
            (batch for batch in batches), total=min(known) if known else None, description="Batches for the statistics"
        )


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except (TypeError, NotImplementedError, RuntimeError):
        # Loaders of iterable data sets and combined loaders have a length that raises.
        return None
