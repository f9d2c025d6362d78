"""Run the cells of a study that are not finished, and gather all of them."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bn_lightning.analysis.cell import Cell, Outcome
from bn_lightning.analysis.cell_processes import processes_of
from bn_lightning.analysis.configuration import cell_configuration, configuration_hash, problem_configuration
from bn_lightning.analysis.description import describe
from bn_lightning.analysis.engine import WorkerError, check_engine, run_cells
from bn_lightning.analysis.problems.mnist_file import named_by_environment
from bn_lightning.analysis.progress import cell_progress
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.run_warnings import (
    CellsFailedWarning,
    ConfigurationChangedWarning,
    OtherVersionsWarning,
    warn_of_changes,
    warn_of_outcomes,
    warn_of_versions,
)
from bn_lightning.analysis.study import Study

__all__ = [
    "CellsFailedWarning",
    "ConfigurationChangedWarning",
    "OtherVersionsWarning",
    "Run",
    "StudyInterrupted",
    "execute",
]


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a study; the message says what was kept and how to go on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A study that was run, with its tables.

    Args:
        study: The study.
        out: The run folder.
        results: The long table: study, arm, seed, step, layer, quantity, value.
        cells: One row per cell: study, arm, seed, factors, label, status, seconds, configuration_hash.
        failures: The cells that failed.
        trained: How many cells were trained now.
        skipped: How many were finished before.
    """

    study: Study
    out: Path
    results: pd.DataFrame
    cells: pd.DataFrame
    failures: tuple[Outcome, ...]
    trained: int
    skipped: int


def execute(
    study: Study,
    *,
    seeds: int | Iterable[int] | None = None,
    jobs: int = 1,
    engine: str = "loky",
    address: str | None = None,
    out: str | Path = "bn_lightning_runs",
    redo: bool = False,
    progress: bool = True,
    command: Sequence[str] = (),
) -> Run:
    """Train every arm with every seed where that was not done yet, and gather the tables.

    Warns of cells that failed (CellsFailedWarning), of finished cells that were trained with another configuration and
    are trained again (ConfigurationChangedWarning), of those that are kept though they were trained with other versions
    (OtherVersionsWarning), and of what the package itself warned of inside the cells. The data's `prepare_data` runs
    once before the first cell. Another process may run the same study into the same folder meanwhile: each cell is
    trained by one of the two.

    Args:
        study: The study.
        seeds: How many seeds, 0 … n - 1, or which ones; by default as many as the problem's budget says.
        jobs: Number of processes.
        engine: "loky", "dask", "sequential", or another backend registered with joblib.
        address: Of the Dask scheduler, for the engine "dask".
        out: The run folder.
        redo: Train finished cells again.
        progress: Show a progress bar over cells.
        command: Arguments of `bn-lightning` that run the study, which the report then names.

    Returns:
        Tables, failures and counts.

    Raises:
        ValueError: If seeds or jobs are no numbers to run, the address is missing, an arm cannot be sent to another
            process, or trainer_options leave the number of devices of a cell open.
        UnknownNameError: If there is no such engine.
        ClusterError: If the Dask cluster cannot be reached or used.
        RunFolderError: If the folder belongs to something else.
        WorkerError: If a process died; finished cells are kept.
        StudyInterrupted: On Ctrl-C, after the finished cells were gathered.
    """
    check_engine(jobs=jobs, engine=engine, address=address)
    processes_of(study.problem.trainer_options)
    chosen = _chosen_seeds(study, seeds)
    folder = RunFolder(Path(out).expanduser().absolute())
    folder.claim(study, extra={**_what_a_report_needs(study), "command": list(command)})
    cells = _cells(study, chosen, folder, redo=redo)
    todo = [cell for cell in cells if redo or not folder.is_finished(cell.key, cell.configuration_hash)]
    hashes = {cell.key: cell.configuration_hash for cell in cells}
    if warn_of_changes(folder, todo):
        # study.json is of the new configuration already; were this run killed, a report would join it to old tables.
        folder.gather(study, hashes)
    warn_of_versions(folder, cells, todo)
    outcomes: list[Outcome] = []
    try:
        if todo:
            # Once here, or every process would download the data for itself.
            study.problem.data().prepare_data()
        finished = len(cells) - len(todo)
        with cell_progress(study.name, total=len(cells), finished=finished, shown=progress and bool(todo)) as advance:
            workers = min(jobs, len(todo))
            for outcome in run_cells(todo, jobs=workers, engine=engine, address=address) if todo else ():
                outcomes.append(outcome)
                advance(outcome)
    except WorkerError:
        folder.gather(study, hashes)
        raise
    except KeyboardInterrupt as error:
        folder.gather(study, hashes)
        kept = sum(folder.is_finished(cell.key, cell.configuration_hash) for cell in cells)
        raise StudyInterrupted(
            f"Interrupted: {kept} of {len(cells)} cells are finished and kept in {folder.path}. Run the same again to "
            "go on from there."
        ) from error
    results, table = folder.gather(study, hashes)
    failures = tuple(outcome for outcome in outcomes if outcome.status == "failed")
    warn_of_outcomes(outcomes, failures, len(cells))
    trained = sum(not outcome.kept for outcome in outcomes)
    return Run(study, folder.path, results, table, failures, trained, len(cells) - trained)


def _chosen_seeds(study: Study, seeds: int | Iterable[int] | None) -> list[int]:
    asked = study.problem.budget.seeds if seeds is None else seeds
    chosen = list(range(asked)) if isinstance(asked, int) else [int(seed) for seed in asked]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise ValueError(f"seeds is how many (at least 1), or which ones (distinct, from 0 on), not {seeds!r}.")
    return chosen


def _cells(study: Study, seeds: Sequence[int], folder: RunFolder, *, redo: bool) -> list[Cell]:
    by_seed: dict[int, list[Cell]] = {seed: [] for seed in seeds}
    shared = problem_configuration(study.problem)
    for arm in study.arms:
        configuration = cell_configuration(study.problem, arm, shared=shared)
        digest = configuration_hash(configuration)
        for seed in seeds:
            cell = Cell(study.name, study.problem, arm, seed, folder.path, configuration, digest, redo)
            by_seed[seed].append(cell)
    # Seed by seed, so that an interrupted run leaves whole pairs.
    return [cell for cells in by_seed.values() for cell in cells]


def _what_a_report_needs(study: Study) -> dict[str, Any]:
    problem = study.problem
    return {
        "source": study.source,
        "file": study.file,
        "monitor": problem.monitor,
        "mode": problem.mode,
        "target": problem.target,
        "layer_of_interest": problem.layer_of_interest,
        "budget": dataclasses.asdict(problem.budget),
        "environment": named_by_environment(getattr(problem.data, "keywords", {}).get("data_dir")),
        "problem_options": describe(dict(problem.options)),
        "reference": study.reference,
        "arms": [
            {"name": arm.name, "label": arm.label, "factors": describe(arm.factors), "options": describe(arm.options)}
            for arm in study.arms
        ],
    }
