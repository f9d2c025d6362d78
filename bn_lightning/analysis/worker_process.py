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


def become_worker(parent: int, out: Path) -> None:
    """Leave Ctrl-C to the process that hands out cells, end when it ends, and share GPUs with the other workers.

    Nothing happens in the process that hands out cells itself, and nothing twice.

    Args:
        parent: Process that hands out cells, or `ANOTHER_MACHINE`.
        out: The run folder.
    """
    if parent == os.getpid():
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker of loky whose parent was killed before its first cell has another parent by now.
    is_child = os.getppid() == parent or multiprocessing.current_process().name.startswith("LokyProcess")
    if is_child and "watch" not in _taken:
        _taken["watch"] = threading.Thread(target=_end_with, args=(parent,), name="end with the parent", daemon=True)
        _taken["watch"].start()
    if "gpu" not in _taken:
        _taken["gpu"] = _take_a_gpu(out)


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed, which leaves it no word to its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _take_a_gpu(out: Path) -> Any:
    # Not asked of CUDA itself, which would settle what this process sees before it is chosen here.
    import torch

    devices = visible_gpus(os.environ, torch.cuda.device_count())
    if len(devices) < 2:
        return None
    number, lock = first_free(out, f"worker_on_{platform.node()}", places=MOST_WORKERS)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(number, devices)
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


def gpu_of_worker(number: int, devices: Sequence[str]) -> str:
    """The GPU that a worker trains on: with more workers than GPUs, each GPU gets as equal a share as can be.

    Args:
        number: Which worker of its machine, from 0.
        devices: GPUs of the machine, at least one.

    Returns:
        One of them.

    Example:
        >>> [gpu_of_worker(number, ("0", "1", "5")) for number in range(5)]
        ['0', '1', '5', '0', '1']
    """
    return devices[number % len(devices)]
