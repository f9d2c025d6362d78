"""What a report says in words: how to read it, what was run, what went wrong, how to run it again."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bn_lightning.analysis.catalog import default_problem, find_study, study_names
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.analysis.study import Study


def troubled_cells(folder: Path, cells: pd.DataFrame) -> Iterator[str]:
    """Name every cell that failed, diverged, or is of another configuration.

    Args:
        folder: The run folder.
        cells: One row per cell.

    Yields:
        One line per such cell.
    """
    for cell in cells.itertuples():
        name = f"{cell.arm}, seed {cell.seed}"
        if str(cell.status) == "outdated":
            yield f"{name}: outdated (not trained yet with this configuration); its results are missing here."
        elif str(cell.status) != "done":
            reason = RunFolder(folder).record((str(cell.arm), int(cell.seed))).get("error", "")
            yield f"{name}: {cell.status}" + (f" ({reason})" if reason else "") + "; its results are missing here."
        elif str(cell.label) == "diverged":
            yield f"{name}: diverged; it is counted but in no mean, and its curve ends in a cross."


def reading(study: Study, cells: pd.DataFrame, comparisons: pd.DataFrame) -> Iterator[str]:
    """Say what a reader must know to judge the tables.

    Args:
        study: The study.
        cells: One row per cell.
        comparisons: One row per comparison.

    Yields:
        One sentence or two per point.
    """
    seeds = cells[cells["status"] == "done"].groupby("arm")["seed"].nunique()
    low, high = (int(seeds.min()), int(seeds.max())) if len(seeds) else (0, 0)
    count = f"{high}" if low == high else f"{low} to {high}"
    yield (
        f"{count} seeds per arm. A seed fixes the initial weights and the order of the data, the same for every arm, "
        "so arms are compared by their differences seed by seed: luck that all arms share cancels."
    )
    yield (
        "Intervals cover the mean over seeds in 95 % of studies like this one: Student's t, and the BCa bootstrap from "
        "20 seeds on. An interval of a difference that contains zero, or of a ratio that contains one, leaves open "
        f"which of the two arms is better. Ratios of times are {study.reference} over arm: above one the arm is faster."
    )
    if low >= 1:
        # A comparison without pairs has no p, and Holm's correction does not count it.
        tests = int(comparisons["p"].notna().sum()) if "p" in comparisons else len(comparisons)
        smallest = max(2.0 ** (1 - low), 1e-5)  # past 16 seeds, 99,999 sign patterns are drawn
        yield (
            f"p is of a two-sided test that flips the signs of the differences; with {low} seeds it cannot be smaller "
            f"than {smallest:.2g}. Holm's p allows for the {tests} comparisons of the table together, so the smallest "
            f"of them cannot be below {min(1.0, smallest * max(tests, 1)):.2g}."
            + (" Below six seeds nothing is called a difference." if low < 6 else "")
        )
    if study.problem.target is not None:
        yield (
            f"The target, {study.problem.target:g}, was fixed before the runs. A run that did not reach it is "
            "censored: its time is later than its last step, by how much is unknown, and no number is made up "
            "for it. A median of ∞ says that half of the runs or more did not reach it. Seconds are those of training "
            "steps: evaluations, and what callbacks do around them, such as recalibration, are left out."
        )
    yield (
        "Runs that diverged are results, not mishaps: they are counted, and means are over the others, so the mean of "
        "an arm with diverged runs flatters it."
    )


def setting(study: Study, cells: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Say what was trained, how long, and towards what.

    Args:
        study: The study.
        cells: One row per cell.

    Yields:
        Terms with their text.
    """
    problem = study.problem
    options = ", ".join(f"{name}={value}" for name, value in problem.options.items())
    yield "Problem", problem.name + (f" ({options})" if options else "")
    yield "Metric", f"{problem.monitor.replace('_', ' ')}, {'higher' if problem.mode == 'max' else 'lower'} is better"
    if problem.target is not None:
        yield "Target", f"{problem.target:g}"
    yield "Reference arm", study.reference
    budget = problem.budget
    yield "Budget", f"{budget.max_steps:,} optimizer steps per run, evaluated every {budget.eval_every:,}"
    done = cells["status"] == "done"
    seconds = cells.loc[cells["status"] != "outdated", "seconds"].sum()
    yield "Runs", f"{int(done.sum())} of {len(cells)} finished, {seconds:,.0f} s of training in all"


def arms_table(study: Study) -> pd.DataFrame:
    """Say in what the arms differ.

    Args:
        study: The study.

    Returns:
        One row per arm, with the columns arm, label, factors and options of the model.
    """

    def words(options: Any) -> str:
        return ", ".join(f"{name}={value}" for name, value in options.items()) or "–"

    rows = [(arm.name, arm.label, words(arm.factors), words(arm.options)) for arm in study.arms]
    return pd.DataFrame(rows, columns=["arm", "label", "factors", "options of the model"])


def comparisons_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Leave out of the comparisons what the page says in words, so that a row fits on a screen.

    Args:
        comparisons: One row per comparison; any columns.

    Returns:
        The table, with quantity and kind in one column where it has both.
    """
    table = comparisons.drop(columns=["reference", "method", "smallest_p"], errors="ignore").rename(
        columns={"holm_p": "Holm p"}
    )
    if not {"quantity", "kind"} <= set(table.columns):
        return table
    quantity = table["quantity"].astype(str).str.replace("_", " ") + ", " + table["kind"].astype(str)
    return table.assign(quantity=quantity).drop(columns="kind")


def commands(folder: Path, study: Study, cells: pd.DataFrame) -> list[str]:
    """Commands that run the study again, write its report again, and open its logs.

    Args:
        folder: The run folder.
        study: The study.
        cells: One row per cell.

    Returns:
        One command per line.
    """
    again = f"--out={folder.with_name(folder.name + '_again')}"
    owner = RunFolder(folder).owner() or {}
    typed, environment = owner.get("command"), owner.get("environment", {})
    # The data that it names are others than those of a shell without it, unless the command names some itself.
    unnamed = not any(argument.startswith("--data") for argument in typed or ())
    before = "".join(f"{name}={shlex.quote(value)} " for name, value in environment.items() if unnamed)
    if typed:
        anew = before + shlex.join(["bn-lightning", *_without_out(typed), again])
    elif study.name in study_names() and study.problem.name == default_problem(study.name).name:
        steps, seeds = study.problem.budget.max_steps, cells["seed"].nunique()
        options = [f"--max-steps={steps}", f"--seeds={seeds}", again, *_chosen_arms(study)]
        anew = before + shlex.join(["bn-lightning", "compare", study.name, *options])
    else:
        anew = f"# The study was run from Python: run the same code again with out={str(folder) + '_again'!r}."
    return [
        anew,
        shlex.join(["bn-lightning", "report", str(folder)]),
        shlex.join(["tensorboard", "--logdir", str(folder)]),
    ]


def _without_out(typed: Sequence[str]) -> Iterator[str]:
    """A command as typed, without the folder that it names, and without what asks for training again."""
    arguments = iter(typed)
    for argument in arguments:
        if argument == "--out":
            next(arguments, None)
        elif argument != "--redo" and not argument.startswith("--out="):
            yield argument


def _chosen_arms(study: Study) -> list[str]:
    """The option that names a study's arms, where it has fewer than the one of that name."""
    names = [arm.name for arm in study.arms]
    whole = [arm.name for arm in find_study(study.name, problem=study.problem).arms]
    return [] if names == whole else [f"--arms={','.join(names)}"]


def versions(folder: Path, cells: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Versions the cells were run with, all of them where they differ; those of outdated cells do not count.

    Args:
        folder: The run folder.
        cells: One row per cell.

    Yields:
        Distributions with their versions.
    """
    found: dict[str, set[str]] = {}
    for cell in cells[cells["status"] != "outdated"].itertuples():
        for name, version in RunFolder(folder).record((str(cell.arm), int(cell.seed))).get("versions", {}).items():
            found.setdefault(str(name), set()).add(str(version))
    if not found:
        yield "Python", sys.version.split()[0]
    for name, versions in found.items():
        mixed = " (differs between cells)" if len(versions) > 1 else ""
        yield name, ", ".join(sorted(versions)) + mixed
