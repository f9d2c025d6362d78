"""One cell of a study, one arm with one seed: a function of plain arguments that any process can run."""

import functools
import os
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bn_lightning.analysis.configuration import describe, versions
from bn_lightning.analysis.results import results_table, write_json, write_table
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.study import Arm, Problem


@dataclass(frozen=True)
class Cell:
    """What one cell is to run.

    Args:
        study: Name of the study.
        problem: What is trained.
        arm: Callbacks and options.
        seed: Seed of weights and data order.
        out: The run folder.
        configuration: What decides the numbers, in JSON types.
        configuration_hash: Its hash.
    """

    study: str
    problem: Problem
    arm: Arm
    seed: int
    out: Path
    configuration: dict[str, Any]
    configuration_hash: str

    @property
    def key(self) -> tuple[str, int]:
        """Arm and seed."""
        return self.arm.name, self.seed


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Args:
        arm: Name of the arm.
        seed: The seed.
        status: "done" or "failed".
        error: The error in one line; empty for a cell that is done.
        warnings: Class and text of every distinct warning.
    """

    arm: str
    seed: int
    status: str
    error: str = ""
    warnings: tuple[tuple[str, str], ...] = ()


def run_cell(cell: Cell, *, parent: int | None = None) -> Outcome:
    """Train one cell and write its files; an error is kept in the cell's folder, not raised.

    Writes `results.csv` and then, as the last thing, `cell.json` with status "done", so a cell that was cut off by
    whatever means never looks finished. A run that diverges is done: that is its result.

    Args:
        cell: What to run.
        parent: Process that hands out cells; a process other than that one leaves Ctrl-C to it.

    Returns:
        How it ended.
    """
    if parent not in (None, os.getpid()):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported here so that a run whose cells are all finished loads no Lightning.
    from bn_lightning.analysis.training import train

    record: dict[str, Any] = {
        "study": cell.study,
        "arm": cell.arm.name,
        "seed": cell.seed,
        "factors": describe(dict(cell.arm.factors)),
        "label": "",
        "status": "running",
        "seconds": None,
        "configuration_hash": cell.configuration_hash,
        "configuration": cell.configuration,
        "versions": versions(),
    }
    folder = RunFolder(cell.out).begin(cell.key, record)
    write = functools.partial(write_json, folder / "cell.json")
    started = perf_counter()
    try:
        training = train(cell.problem, cell.arm, seed=cell.seed, folder=folder)
        rows = [(cell.study, cell.arm.name, cell.seed, *row) for row in training.rows]
        write_table(folder / "results.csv", results_table(rows))
    except Exception as error:
        ended = {"status": "failed", "seconds": perf_counter() - started}
        write({**record, **ended, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return Outcome(*cell.key, "failed", f"{type(error).__name__}: {error}")
    ended = {"status": "done", "seconds": perf_counter() - started}
    label = "trained" if training.diverged_at is None else "diverged"
    found = {
        "label": label,
        "rows": len(rows),
        "diverged_at": training.diverged_at,
        "warnings": [list(w) for w in training.warnings],
    }
    write({**record, **ended, **found})
    return Outcome(*cell.key, "done", warnings=training.warnings)
