"""Run the cells of a study that are not finished, and gather all of them."""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import bn_lightning.errors as package_errors
from bn_lightning.analysis.cell import Cell, Outcome
from bn_lightning.analysis.configuration import cell_configuration, configuration_hash, describe
from bn_lightning.analysis.engine import check_engine, run_cells
from bn_lightning.analysis.progress import cell_progress
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.study import Study


class CellsFailedWarning(UserWarning):
    """Some cells of a study ended with an error; the others were kept."""


class ConfigurationChangedWarning(UserWarning):
    """Finished cells of a run folder were trained otherwise than asked, and are trained again."""


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
    out: str | Path = "bn_lightning_runs",
    redo: bool = False,
    progress: bool = True,
) -> Run:
    """Train every arm with every seed where that was not done yet, and gather the tables.

    Warns of cells that failed (CellsFailedWarning), of finished cells that were trained with another configuration and
    are trained again (ConfigurationChangedWarning), and of what the package itself warned of inside the cells. The
    data's `prepare_data` runs once before the first cell.

    Args:
        study: The study.
        seeds: How many seeds, 0 … n - 1, or which ones; by default as many as the problem's budget says.
        jobs: Number of processes.
        engine: A joblib backend.
        out: The run folder.
        redo: Train finished cells again.
        progress: Show a progress bar over cells.

    Returns:
        Tables, failures and counts.

    Raises:
        ValueError: If seeds or jobs are no numbers to run.
        UnknownNameError: If there is no such engine.
        RunFolderError: If the folder belongs to something else.
        WorkerError: If a process died; finished cells are kept.
        StudyInterrupted: On Ctrl-C, after the finished cells were gathered.
    """
    check_engine(jobs=jobs, engine=engine)
    chosen = _chosen_seeds(study, seeds)
    folder = RunFolder(Path(out).expanduser().absolute())
    folder.claim(study, extra=_what_a_report_needs(study))
    cells = _cells(study, chosen, folder)
    todo = [cell for cell in cells if redo or not folder.is_finished(cell.key, cell.configuration_hash)]
    _warn_of_changes(folder, todo)
    outcomes: list[Outcome] = []
    try:
        if todo:
            # Once here, or every process would download the data for itself.
            study.problem.data().prepare_data()
        finished = len(cells) - len(todo)
        with cell_progress(study.name, total=len(cells), finished=finished, shown=progress and bool(todo)) as advance:
            for outcome in run_cells(todo, jobs=min(jobs, len(todo)), engine=engine) if todo else ():
                outcomes.append(outcome)
                advance(outcome)
    except KeyboardInterrupt as error:
        folder.gather(study, [cell.key for cell in cells])
        kept = sum(folder.is_finished(cell.key, cell.configuration_hash) for cell in cells)
        raise StudyInterrupted(
            f"Interrupted: {kept} of {len(cells)} cells are finished and kept in {folder.path}. Run the same again to "
            "go on from there."
        ) from error
    results, table = folder.gather(study, [cell.key for cell in cells])
    failures = tuple(outcome for outcome in outcomes if outcome.status == "failed")
    _warn_of_outcomes(outcomes, failures, len(cells))
    return Run(study, folder.path, results, table, failures, len(todo), len(cells) - len(todo))


def _chosen_seeds(study: Study, seeds: int | Iterable[int] | None) -> list[int]:
    asked = study.problem.budget.seeds if seeds is None else seeds
    chosen = list(range(asked)) if isinstance(asked, int) else [int(seed) for seed in asked]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise ValueError(f"seeds is how many (at least 1), or which ones (distinct, from 0 on), not {seeds!r}.")
    return chosen


def _cells(study: Study, seeds: Sequence[int], folder: RunFolder) -> list[Cell]:
    by_seed: dict[int, list[Cell]] = {seed: [] for seed in seeds}
    for arm in study.arms:
        configuration = cell_configuration(study.problem, arm)
        digest = configuration_hash(configuration)
        for seed in seeds:
            cell = Cell(study.name, study.problem, arm, seed, folder.path, configuration, digest)
            by_seed[seed].append(cell)
    # Seed by seed, so that an interrupted run leaves whole pairs.
    return [cell for cells in by_seed.values() for cell in cells]


def _what_a_report_needs(study: Study) -> dict[str, Any]:
    problem = study.problem
    return {
        "source": study.source,
        "monitor": problem.monitor,
        "mode": problem.mode,
        "target": problem.target,
        "layer_of_interest": problem.layer_of_interest,
        "budget": dataclasses.asdict(problem.budget),
        "problem_options": describe(dict(problem.options)),
        "reference": study.reference,
        "arms": [
            {"name": arm.name, "label": arm.label, "factors": describe(arm.factors), "options": describe(arm.options)}
            for arm in study.arms
        ],
    }


def _warn_of_changes(folder: RunFolder, todo: Sequence[Cell]) -> None:
    changed: set[str] = set()
    count = 0
    for cell in todo:
        record = folder.record(cell.key)
        if record.get("status") == "done" and record.get("configuration_hash") != cell.configuration_hash:
            before = record.get("configuration", {})
            changed |= {name for name, value in cell.configuration.items() if before.get(name) != value}
            count += 1
    if count:
        warnings.warn(
            f"{count} finished cells in {folder.path} were trained otherwise ({', '.join(sorted(changed))} changed), "
            "so they are trained again. To keep both, name another folder by out (--out).",
            ConfigurationChangedWarning,
            stacklevel=3,
        )


def _warn_of_outcomes(outcomes: Sequence[Outcome], failures: Sequence[Outcome], total: int) -> None:
    """Warn once of what the package warned of in the cells; what others warned of stays in the cells' files."""
    found: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for name, text in outcome.warnings:
            if hasattr(package_errors, name):
                found.setdefault((name, text), []).append(f"{outcome.arm}, seed {outcome.seed}")
    for (name, text), cells in found.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        warnings.warn(f"{text} (cell {cells[0]}{more})", getattr(package_errors, name), stacklevel=3)
    if failures:
        said = "; ".join(f"{cell.arm}, seed {cell.seed}: {cell.error}" for cell in failures)
        text = f"{len(failures)} of {total} cells failed: {said}. Their cell.json holds the tracebacks."
        warnings.warn(text, CellsFailedWarning, stacklevel=3)
