"""Hand cells to processes by joblib or to a Dask cluster, and stop cleanly on Ctrl-C."""

import os
import signal
import sys
import warnings
from asyncio import CancelledError
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import cloudpickle
from joblib import Parallel, delayed
from joblib.parallel import BACKENDS

from bn_lightning.analysis.cell import Cell, Outcome, run_cell
from bn_lightning.analysis.dask_cluster import ClusterError, dask_outcomes
from bn_lightning.analysis.names import unknown_name
from bn_lightning.analysis.own_code import worker_mark
from bn_lightning.analysis.sent_cell import run_sent, sent
from bn_lightning.analysis.worker_process import WorkerError

__all__ = ["ClusterError", "WorkerError", "check_engine", "run_cells"]

DASK, LOKY = "dask", "loky"


def run_cells(cells: Sequence[Cell], *, jobs: int, engine: str, address: str | None = None) -> Iterator[Outcome]:
    """Run cells in `jobs` processes and yield how each ended, in the order they end.

    Cells cross process borders pickled by value where they must be, so factories may be lambdas or come from a script.
    On Ctrl-C, or when the caller stops iterating, the processes are ended; cells that were finished keep their files.

    Args:
        cells: What to run.
        jobs: Number of processes; one runs the cells in this process. A Dask cluster uses as many as it has.
        engine: "loky" (processes on this machine), "dask" (a cluster that is running), "sequential", or any other
            backend that was registered with joblib.
        address: Of the Dask scheduler.

    Yields:
        One outcome per cell.

    Raises:
        UnknownNameError: If joblib has no such backend, or one whose workers share this process' random state.
        ValueError: If jobs is not positive, an address is missing or of no use, or an arm cannot be pickled.
        ClusterError: If the Dask cluster cannot be reached or used.
        WorkerError: If a process died, could not load a cell, or holds another version of a module of the user's.
    """
    check_engine(jobs=jobs, engine=engine, address=address)
    if jobs > 1 or engine == DASK:
        _check_that_arms_travel(cells)
    outcomes = dask_outcomes(cells, address=str(address)) if engine == DASK else _joblib_outcomes(cells, jobs, engine)
    try:
        yield from outcomes
    except (ClusterError, WorkerError):
        raise
    except (Exception, CancelledError) as error:  # a cell's own errors are outcomes; this one is of the engine
        raise WorkerError(
            f"The engine {engine!r} failed. Finished cells are kept; run the same again to go on, with engine='loky' "
            "and jobs=1 (--engine loky --jobs 1) to see an error of the process itself, or with fewer jobs if memory "
            f"ran out. ({type(error).__name__}: {error})"
        ) from error
    finally:
        outcomes.close()


def _joblib_outcomes(cells: Sequence[Cell], jobs: int, engine: str) -> Generator[Outcome]:
    if jobs == 1 and engine in (LOKY, "sequential"):
        for cell in cells:
            yield run_cell(cell, parent=os.getpid())
        return
    # Other arguments than before make joblib start its processes anew: those it has kept know older code.
    fresh = {"initializer": _see, "initargs": (tuple(sys.path), worker_mark())} if engine == LOKY else {}
    parallel = Parallel(n_jobs=jobs, backend=engine, batch_size=1, return_as="generator_unordered", **fresh)
    with _interrupts_held_back():
        outcomes = parallel(delayed(run_sent)(cell) for cell in sent(cells, parent=os.getpid()))
    try:
        yield from outcomes
    finally:
        with warnings.catch_warnings():
            # joblib warns that stopping early wastes work; on Ctrl-C that is what was asked for.
            warnings.simplefilter("ignore")
            outcomes.close()


def _see(path: tuple[str, ...], mark: Mapping[str, str]) -> None:
    """Let a worker find what the process that started it finds; what that does marks the worker."""
    sys.path[:] = path


def check_engine(*, jobs: int, engine: str, address: str | None = None) -> None:
    """Check them before anything is started.

    Args:
        jobs: Number of processes.
        engine: "dask" or a joblib backend.
        address: Of the Dask scheduler.

    Raises:
        UnknownNameError: If joblib has no such backend, or one whose workers share this process' random state.
        ValueError: If jobs is not positive, or an address is missing or of no use.
    """
    # Threads share one random state, and forked processes inherit torch's threads in a broken state.
    known = sorted({*BACKENDS, DASK} - {"threading", "multiprocessing"})
    if engine not in known:
        raise unknown_name("engine", engine, known)
    if jobs < 1:
        raise ValueError(f"Cells need at least one process: jobs is {jobs}.")
    if engine == DASK and not address:
        raise ValueError(
            "The engine 'dask' needs the address of a scheduler that is running: address='tcp://127.0.0.1:8786' "
            "(--address tcp://127.0.0.1:8786). Start one with `dask scheduler`; it prints its address."
        )
    if engine != DASK and address:
        raise ValueError(
            f"The address {address!r} is one of a Dask scheduler, but the engine is {engine!r}. Name engine='dask' "
            "(--engine dask), or leave the address out."
        )


def _check_that_arms_travel(cells: Sequence[Cell]) -> None:
    for cell in {cell.arm.name: cell for cell in cells}.values():
        try:
            cloudpickle.dumps(cell)
        except Exception as error:
            raise ValueError(
                f"Arm {cell.arm.name!r} with its problem cannot be sent to another process "
                f"({type(error).__name__}: {error}). Make what cannot be pickled (a lock, an open file, a generator) "
                "inside the functions `callbacks`, `module` and `data`, or train in this process: jobs=1 (--jobs 1)."
            ) from error


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
