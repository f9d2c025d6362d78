"""Cells on a Dask cluster that is running already.

Not by joblib's Dask backend: it never hears of a task that failed outside its own function, so a worker that cannot
load a cell, or a cell that kills every worker it is given to, would leave the caller waiting for ever.
"""

import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from bn_lightning.analysis.cell import Cell, Outcome
from bn_lightning.analysis.sent_cell import SentCell, run_sent, sent
from bn_lightning.analysis.worker_process import ANOTHER_MACHINE

CONNECT_SECONDS = 10

_one_at_a_time = threading.Lock()


class ClusterError(RuntimeError):
    """A Dask cluster cannot be reached, or its workers cannot train cells."""


def dask_outcomes(cells: Sequence[Cell], *, address: str) -> Generator[Outcome]:
    """Run cells on the workers of a Dask cluster and yield how each ended, in the order they end.

    Workers write into the run folder, so they need to see it under the same path, as on a shared file system, and to
    import what the cells are made of. A worker that dies costs time only: the scheduler gives its cell to another one.
    When the caller stops iterating, cells that wait are withdrawn; those in training are finished and kept.

    Args:
        cells: What to run.
        address: Of the scheduler, such as "tcp://127.0.0.1:8786".

    Yields:
        One outcome per cell.

    Raises:
        ClusterError: If Dask is not installed, the scheduler does not answer within ten seconds, there is no worker, a
            worker has several threads or does not see the run folder.
        WorkerError: If a worker could not load a cell, or holds another version of a module of the user's.
    """
    distributed = _distributed()
    client = _connect(distributed, address)
    futures: list[Any] = []
    try:
        _check_workers(client, address, cells[0].out)
        futures = [client.submit(_run_alone, cell, pure=False) for cell in sent(cells, parent=ANOTHER_MACHINE)]
        for future in distributed.as_completed(futures, loop=client.loop):
            yield future.result()
    finally:
        client.cancel(futures)
        client.close()


def _run_alone(cell: SentCell) -> Outcome:
    # Threads share one random state, and workers that join late were not asked for their number of threads.
    with _one_at_a_time:
        return run_sent(cell)


def _distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ClusterError(
            "The engine 'dask' needs the package distributed, here and on the workers: pip install 'bn-lightning[dask]'"
        ) from error
    return distributed


def _connect(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answered at {address!r} within {CONNECT_SECONDS} s ({type(error).__name__}: {error}). "
            "Start one with `dask scheduler`, which prints its address, and workers with `dask worker ADDRESS "
            "--nthreads 1`. Or train on this machine: engine='loky' (--engine loky)."
        ) from error


def _check_workers(client: Any, address: str, out: Path) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"The Dask scheduler at {address!r} has no worker after {CONNECT_SECONDS} s. Start some with `dask worker "
            f"{address} --nthreads 1`."
        ) from error
    several = [f"{worker} ({threads})" for worker, threads in client.nthreads().items() if threads != 1]
    if several:
        raise ClusterError(
            "A cell needs a process of its own, as threads share one random state, but these Dask workers have several "
            f"threads: {', '.join(several)}. Start them with --nthreads 1, and as many as you want cells at a time "
            "with --nworkers."
        )
    blind = [worker for worker, sees in client.run(os.path.isdir, str(out)).items() if not sees]
    if blind:
        raise ClusterError(
            f"Workers write their results into the run folder, but these do not see {out}: {', '.join(blind)}. Name a "
            "folder on a file system that all of them share by out (--out)."
        )
