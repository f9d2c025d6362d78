"""A cell that trains in several processes, such as DDP's: torchrun starts them, and the first one gives the results."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from bn_lightning.analysis.own_code import own_code
from bn_lightning.analysis.study import Arm, Problem

if TYPE_CHECKING:  # it loads Lightning
    from bn_lightning.analysis.training import Training

CELL, TRAINING, FAILURE = "cell.pickle", "training.pickle", "failure_{rank}.pickle"
# These start processes themselves, which would be those of each process that was started for them.
_STARTERS = re.compile(r"spawn|fork|notebook")


def processes_of(trainer_options: Mapping[str, Any]) -> int:
    """In how many processes a Trainer with these options trains.

    Args:
        trainer_options: Of a problem.

    Returns:
        1, or the number of devices.

    Raises:
        ValueError: If the number is left to the Trainer, or spans machines, or a strategy starts processes of its own.

    Example:
        >>> processes_of({}), processes_of({"accelerator": "cpu", "devices": 2})
        (1, 2)
    """
    devices, nodes = trainer_options.get("devices", 1), trainer_options.get("num_nodes", 1)
    if nodes != 1:
        raise ValueError(
            f"A cell trains on one machine, but trainer_options ask for num_nodes={nodes!r}. Leave it out: cells are "
            "shared out over machines by engine='dask' (--engine dask)."
        )
    if isinstance(devices, list | tuple):
        number = len(devices)
    elif isinstance(devices, int) and not isinstance(devices, bool):
        number = devices
    else:
        number = int(devices) if str(devices).isdigit() else 1 if devices == "auto" else 0
    if number < 1:
        raise ValueError(
            f"trainer_options ask for devices={devices!r}. Say how many a cell trains on, for instance devices=2; "
            "GPUs that are left over go to the other cells that run at a time (jobs, --jobs)."
        )
    strategy = trainer_options.get("strategy", "auto")
    words = strategy if isinstance(strategy, str) else str(getattr(strategy, "_start_method", ""))
    if number > 1 and _STARTERS.search(words):
        raise ValueError(
            f"The {number} processes of a cell are started for it, but the strategy {words!r} of trainer_options "
            "starts processes itself. Name 'ddp' or another strategy that runs under torchrun."
        )
    return number


def train_in_processes(problem: Problem, arm: Arm, *, seed: int, folder: Path, processes: int) -> "Training":
    """Train one cell in several processes of this machine, one of them a device.

    Every process is seeded alike, so weights agree; Lightning's sampler gives each its share of the data, in an order
    that the seed decides. What is recorded is what the first process sees: log metrics with `sync_dist=True`, or as
    torchmetrics, which do that themselves; the training loss is that of its share.

    Args:
        problem: What is trained.
        arm: Callbacks and options.
        seed: Seed of weights and data order.
        folder: Where the logs go.
        processes: How many.

    Returns:
        What came of the run.

    Raises:
        RuntimeError: If a process failed; the message names the error, and its notes hold the traceback.
    """
    with tempfile.TemporaryDirectory(prefix="bn_lightning_") as name:
        room = Path(name)
        (room / CELL).write_bytes(cloudpickle.dumps((own_code(), (problem, arm, seed, folder))))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={processes}", "-m", "bn_lightning.analysis.cell_process", name]
        # What can be imported here can be there: a script's own folder is on the path of this process alone.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
        )
        if done.returncode or not (room / TRAINING).exists():
            raise _failure(room, processes, done.stdout)
        training: Training = pickle.loads((room / TRAINING).read_bytes())
        return training


def _failure(room: Path, processes: int, said: str) -> RuntimeError:
    failures = sorted(room.glob(FAILURE.format(rank="*")), key=lambda path: path.stat().st_mtime_ns)
    if failures:
        # The others lose their connection to the first that fails.
        rank, text, trace = pickle.loads(failures[0].read_bytes())
        error = RuntimeError(f"In process {rank} of the {processes} of this cell: {text}")
        error.add_note(trace)
        return error
    lines = said.strip().splitlines() or ["nothing was printed"]
    error = RuntimeError(f"The {processes} processes of this cell ended without a result: {lines[-1]}")
    error.add_note("\n".join(lines[-100:]))
    return error
