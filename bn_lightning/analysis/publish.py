"""Turn a run folder's tables into its report."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bn_lightning.analysis.catalog import find_study, study_names
from bn_lightning.analysis.report import write_report
from bn_lightning.analysis.report_runs import outdated_cells, unreached_target
from bn_lightning.analysis.results import load_cells, load_results
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.study import Arm, Budget, Problem, Study
from bn_lightning.analysis.summary import compare, summarise
from bn_lightning.errors import RunFolderError


@dataclasses.dataclass(frozen=True)
class Published:
    """A report and the tables in it.

    Args:
        path: The page.
        summary: One row per arm.
        comparisons: One row per comparison with the reference.
        remarks: What a reader of the tables must know of them.
    """

    path: Path
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    remarks: tuple[str, ...] = ()


def publish(
    out: Path,
    *,
    study: Study,
    results: pd.DataFrame,
    cells: pd.DataFrame,
    form: Literal["html", "markdown"] = "html",
    remarks: tuple[str, ...] = (),
) -> Published:
    """Summarise, compare, and write the report and `figures/` into a run folder.

    Args:
        out: The run folder.
        study: The study.
        results: The long table.
        cells: One row per cell.
        form: "html" for `report.html`, "markdown" for `report.md`.
        remarks: What else a reader must know, beside what the tables themselves show.

    Returns:
        Path and tables.
    """
    summary = summarise(results, cells, study)
    comparisons = compare(results, cells, study)
    path = write_report(
        out,
        study=study,
        results=results,
        cells=cells,
        summary=summary,
        comparisons=comparisons,
        form=form,
        remarks=remarks,
    )
    remarks = (*outdated_cells(cells), *unreached_target(results, study), *remarks)
    return Published(path, summary, comparisons, remarks)


def publish_folder(out: str | Path, *, form: Literal["html", "markdown"] = "html") -> Published:
    """Write the report of a run folder again, from its files alone.

    The study is found by its name or its file, for its figures; problem, budget and target are those of the run. One
    that cannot be found, as it was run from Python, gets the figures that suit every study.

    Args:
        out: The run folder.
        form: "html" for `report.html`, "markdown" for `report.md`.

    Returns:
        Path and tables.

    Raises:
        RunFolderError: If it is no run folder, or holds no finished cell.
    """
    folder = RunFolder(Path(out).absolute())
    said = folder.owner()
    if said is None:
        raise RunFolderError(
            f"{folder.path} holds no study.json, so it is no run folder. Name the folder given as out."
        )
    results, cells = load_results(folder.path), load_cells(folder.path)
    if results.empty:
        reasons = " ".join(outdated_cells(cells)) or "Run its comparison first."
        raise RunFolderError(f"{folder.path} holds no finished cell yet. {reasons}")
    study, remarks = _with_figures(_remembered_study(folder, said))
    return publish(folder.path, study=study, results=results, cells=cells, form=form, remarks=remarks)


def _remembered_study(folder: RunFolder, said: dict[str, Any]) -> Study:
    try:
        problem = Problem(
            name=said["problem"],
            module=_gone,
            data=_gone,
            monitor=said["monitor"],
            mode=said["mode"],
            target=said["target"],
            budget=Budget(**said["budget"]),
            layer_of_interest=said["layer_of_interest"],
        )
        arms = tuple(Arm(**arm) for arm in said["arms"])
        words = {"question": said["question"], "source": said.get("source", ""), "file": said.get("file", "")}
        return Study(name=said["study"], arms=arms, reference=said["reference"], problem=problem, **words)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{folder.path / 'study.json'} lacks what a report needs: {error!r}. It may be of another version of "
            "bn_lightning: run the same comparison into this folder again, which keeps its finished cells."
        ) from error


def _with_figures(study: Study) -> tuple[Study, tuple[str, ...]]:
    """The study with the figures of the one that was run where that is found, and what is to be said otherwise."""
    if not study.file and study.name not in study_names():
        return study, ()
    try:
        found = find_study(study.file or study.name, problem=study.problem)
    except Exception as error:  # a user's file may raise whatever it likes
        if not study.file:
            raise
        reason = str(error).rstrip(".")
        return study, (f"The figures are those of any study, as the study's own file could not be used: {reason}.",)
    return dataclasses.replace(study, figures=found.figures), ()


def _gone(**options: Any) -> Any:
    raise RunFolderError("A study read back from its files cannot be trained; run it by name or as a Study.")
