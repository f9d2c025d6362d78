"""What a process that trains cells for another one does before its first cell."""

import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bn_lightning.analysis.process_lock import first_free

ANOTHER_MACHINE = 0  # no process has this number, so no worker takes itself for the one that hands out cells
MOST_WORKERS = 1024  # on one machine and one run folder

_taken: dict[str, Any] = {}  # what this process holds until its end


class WorkerError(RuntimeError):
    """A process that was to train cells died, or could not load what it was sent."""


def become_worker(parent: int, out: Path, *, processes: int = 1) -> None:
    """Leave Ctrl-C to the process that hands out cells, end when it ends, and share GPUs with the other workers.

    Nothing happens in the process that hands out cells itself, and nothing twice.

    Args:
        parent: Process that hands out cells, or `ANOTHER_MACHINE`.
        out: The run folder.
        processes: How many a cell trains in, each on a GPU of its own.
    """
    if parent == os.getpid():
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker of loky whose parent was killed before its first cell has another parent by now.
    is_child = os.getppid() == parent or multiprocessing.current_process().name.startswith("LokyProcess")
    if is_child and "watch" not in _taken:
        _taken["watch"] = end_with_the_parent(parent)
    if "gpus" not in _taken:
        _taken["gpus"] = _take_gpus(out, processes)


def end_with_the_parent(parent: int) -> threading.Thread:
    """Watch from a thread whether the process that started this one is still there, and end where it is not.

    Args:
        parent: Its number.

    Returns:
        The thread, started.
    """
    watch = threading.Thread(target=_end_with, args=(parent,), name="end with the parent", daemon=True)
    watch.start()
    return watch


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed, which leaves it no word to its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _take_gpus(out: Path, processes: int) -> Any:
    # Not asked of CUDA itself, which would settle what this process sees before it is chosen here.
    import torch

    devices = visible_gpus(os.environ, torch.cuda.device_count())
    if len(devices) <= processes:
        return None
    number, lock = first_free(out, f"worker_on_{platform.node()}", places=MOST_WORKERS)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of_worker(number, devices, processes))
    return lock


def visible_gpus(environment: Mapping[str, str], count: int) -> tuple[str, ...]:
    """GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them.

    Args:
        environment: Variables of the process.
        count: How many GPUs torch sees.

    Returns:
        Numbers or identifiers.

    Example:
        >>> visible_gpus({}, 2), visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-8932f937"}, 2)
        (('0', '1'), ('3', 'GPU-8932f937'))
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(str(number) for number in range(count))
    return tuple(name.strip() for name in named.split(",") if name.strip())[:count]


def gpus_of_worker(number: int, devices: Sequence[str], count: int = 1) -> tuple[str, ...]:
    """The GPUs that a worker trains on: with more workers than there are GPUs for, each GPU gets an equal share.

    Args:
        number: Which worker of its machine, from 0.
        devices: GPUs of the machine, at least `count`.
        count: How many GPUs a cell trains on. Some are left idle where they do not divide into groups of so many.

    Returns:
        Some of them.

    Example:
        >>> [*(gpus_of_worker(number, ("0", "1", "5")) for number in range(4)), gpus_of_worker(1, ("0", "1", "5"), 2)]
        [('0',), ('1',), ('5',), ('0',), ('0', '1')]
    """
    first = number % (len(devices) // count) * count
    return tuple(devices[first : first + count])
