"""Hand cells to processes through a joblib engine, and stop cleanly on Ctrl-C."""

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from joblib import Parallel, delayed
from joblib.parallel import BACKENDS

from bn_lightning.analysis.cell import Cell, Outcome, run_cell
from bn_lightning.analysis.names import unknown_name


class WorkerError(RuntimeError):
    """A process that was to train cells died, or could not load what it was sent."""


def run_cells(cells: Sequence[Cell], *, jobs: int, engine: str) -> Iterator[Outcome]:
    """Run cells in `jobs` processes and yield how each ended, in the order they end.

    Cells cross process borders pickled by value where they must be, so factories may be lambdas or come from a script.
    On Ctrl-C, or when the caller stops iterating, the processes are ended; cells that were finished keep their files.

    Args:
        cells: What to run.
        jobs: Number of processes; one runs the cells in this process.
        engine: A joblib backend, such as "loky" (processes on this machine) or "sequential".

    Yields:
        One outcome per cell.

    Raises:
        UnknownNameError: If joblib has no such backend, or one whose workers share this process' random state.
        ValueError: If jobs is not positive.
        WorkerError: If a process died or could not load a cell.
    """
    check_engine(jobs=jobs, engine=engine)
    parallel = Parallel(n_jobs=jobs, backend=engine, batch_size=1, return_as="generator_unordered")
    with _interrupts_held_back():
        outcomes = parallel(delayed(run_cell)(cell, parent=os.getpid()) for cell in cells)
    try:
        yield from outcomes
    except Exception as error:  # a cell's own errors are outcomes; this one is of the engine
        raise WorkerError(
            f"The engine {engine!r} failed. Finished cells are kept; run the same again to go on, with jobs=1 (--jobs "
            "1) to see an error of the process itself, or with fewer jobs if memory ran out. "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        with warnings.catch_warnings():
            # joblib warns that stopping early wastes work; on Ctrl-C that is what was asked for.
            warnings.simplefilter("ignore")
            outcomes.close()


def check_engine(*, jobs: int, engine: str) -> None:
    """Check both before anything is started.

    Args:
        jobs: Number of processes.
        engine: A joblib backend.

    Raises:
        UnknownNameError: If joblib has no such backend, or one whose workers share this process' random state.
        ValueError: If jobs is not positive.
    """
    # Threads share one random state, and forked processes inherit torch's threads in a broken state.
    known = sorted(set(BACKENDS) - {"threading", "multiprocessing"})
    if engine not in known:
        raise unknown_name("engine", engine, known)
    if jobs < 1:
        raise ValueError(f"Cells need at least one process: jobs is {jobs}.")


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start worker processes with Ctrl-C blocked, which they inherit; here it is delivered afterwards.

    The terminal sends Ctrl-C to the workers too, and one that is still importing would die with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
