"""A real Dask scheduler and real workers on 127.0.0.1, as processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


@contextmanager
def dask_scheduler(folder: Path) -> Iterator[str]:
    """A scheduler without workers, until the block ends; its address."""
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with _process("scheduler", *options, folder=folder) as process:
        deadline = time.monotonic() + 240
        while not (file.is_file() and file.read_text().endswith("}")):
            assert process.poll() is None, (folder / "dask.log").read_text()
            assert time.monotonic() < deadline, (folder / "dask.log").read_text()
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"]


@contextmanager
def dask_worker(address: str, folder: Path, *, threads: int = 1) -> Iterator[subprocess.Popen]:
    """A worker without a nanny, so that what is killed stays dead."""
    place = ["--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--local-directory", str(folder)]
    with _process("worker", address, "--nthreads", str(threads), *place, folder=folder) as process:
        yield process


@contextmanager
def _process(*arguments: str, folder: Path) -> Iterator[subprocess.Popen]:
    with (folder / "dask.log").open("a") as log:
        command = [sys.executable, "-m", "dask", *arguments]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(120)
