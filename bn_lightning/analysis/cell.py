"""One cell of a study, one arm with one seed: a function of plain arguments that any process can run."""

import contextlib
import functools
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bn_lightning.analysis.cell_processes import processes_of, train_in_processes
from bn_lightning.analysis.configuration import versions
from bn_lightning.analysis.description import describe
from bn_lightning.analysis.process_lock import held
from bn_lightning.analysis.results import results_table, write_json, write_table
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.study import Arm, Problem
from bn_lightning.analysis.worker_process import become_worker
from bn_lightning.errors import RunFolderError

if TYPE_CHECKING:
    from bn_lightning.analysis.training import Training


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
        redo: Whether to train it again where it is finished.
    """

    study: str
    problem: Problem
    arm: Arm
    seed: int
    out: Path
    configuration: dict[str, Any]
    configuration_hash: str
    redo: bool = False

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
        kept: Whether another process had finished it, so that nothing was trained.
    """

    arm: str
    seed: int
    status: str
    error: str = ""
    warnings: tuple[tuple[str, str], ...] = ()
    kept: bool = False


def run_cell(cell: Cell, *, parent: int | None = None) -> Outcome:
    """Train one cell and write its files; an error is kept in the cell's folder, not raised.

    Writes `results.csv` and then, as the last thing, `cell.json` with status "done", so a cell that was cut off by
    whatever means never looks finished. A run that diverges is done: that is its result. Only one process trains a
    cell: another one that is handed the same cell, by a second run on the same folder, waits and takes its result.

    Args:
        cell: What to run.
        parent: Process that hands out cells; a process other than that one leaves Ctrl-C to it and ends with it.

    Returns:
        How it ended.
    """
    if parent is not None:
        become_worker(parent, cell.out, processes=processes_of(cell.problem.trainer_options))
    with held(cell.out, f"{cell.arm.name}.seed_{cell.seed}") as waited:
        finished = RunFolder(cell.out).is_finished(cell.key, cell.configuration_hash)
        if finished and (waited or not cell.redo):
            return Outcome(*cell.key, "done", kept=True)
        return _train(cell)


def _train(cell: Cell) -> Outcome:
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
    folder = RunFolder(cell.out).cell(cell.key)
    write = functools.partial(write_json, folder / "cell.json")
    started = perf_counter()
    try:
        RunFolder(cell.out).begin(cell.key, record)
        training = _training(cell, folder)
        rows = [(cell.study, cell.arm.name, cell.seed, *row) for row in training.rows]
        write_table(folder / "results.csv", results_table(rows))
        label = "trained" if training.diverged_at is None else "diverged"
        found = {
            "label": label,
            "rows": len(rows),
            "diverged_at": training.diverged_at,
            "warnings": [list(w) for w in training.warnings],
        }
        write({**record, "status": "done", "seconds": perf_counter() - started, **found})
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        ended = {"status": "failed", "seconds": perf_counter() - started}
        with contextlib.suppress(OSError, RunFolderError):  # a full disk takes no record of that either
            write({**record, **ended, "error": said, "traceback": traceback.format_exc()})
        return Outcome(*cell.key, "failed", said)
    return Outcome(*cell.key, "done", warnings=training.warnings)


def _training(cell: Cell, folder: Path) -> "Training":
    processes = processes_of(cell.problem.trainer_options)
    if processes > 1:
        return train_in_processes(cell.problem, cell.arm, seed=cell.seed, folder=folder, processes=processes)
    # Imported here so that a run whose cells are all finished loads no Lightning.
    from bn_lightning.analysis.training import train

    return train(cell.problem, cell.arm, seed=cell.seed, folder=folder)
