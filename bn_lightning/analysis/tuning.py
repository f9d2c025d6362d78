"""Give every arm the learning rate that suits it, chosen on data held out from training, from a named grid."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bn_lightning.analysis.held_out import held_out_problem
from bn_lightning.analysis.runner import Run, execute
from bn_lightning.analysis.study import Arm, Budget, Problem, Study
from bn_lightning.analysis.summary import summarise

GRID_SEEDS = (1000, 1001)  # apart from those of the runs compared


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A study whose arms have rates of their own.

    Args:
        study: The study, on its own problem; each arm's rate is among its factors, as `rate_multiple`.
        grid: One row per arm and rate: arm, multiple, the metric's mean over the tuning seeds where it is finite, how
            many seeds diverged, how many were trained, chosen; where there are any, also how many kept finite weights
            and have no finite metric (not_finite), and how many failed.
    """

    study: Study
    grid: pd.DataFrame


def tune_learning_rate(
    study: Study,
    *,
    multiples: Iterable[float],
    on: Problem | None = None,
    seeds: Iterable[int] = GRID_SEEDS,
    max_steps: int | None = None,
    jobs: int = 1,
    engine: str = "loky",
    address: str | None = None,
    out: str | Path,
    redo: bool = False,
    progress: bool = True,
) -> Tuned:
    """Train every arm at every rate of a grid, and keep for each arm the rate with the best final metric.

    The metric is `on.monitor` at the last step, averaged over the tuning seeds; a rate at which any seed diverged,
    failed, or ended with a metric that is not finite is not chosen. Where rates tie, the smallest is taken. Rates of
    all optimizers are multiplied before the first step, so any module will do. Finished cells in `out` are not trained
    again unless told to.

    Args:
        study: The study.
        multiples: The grid, as multiples of the arm's own learning rate; an array will do.
        on: The problem to tune on: the same training, evaluated on a validation split and never on the test set. By
            default a tenth of the study's training data is held out, see `held_out_problem`.
        seeds: Seeds for tuning alone.
        max_steps: Optimizer steps of a tuning run; by default those of `on`.
        jobs: Number of processes.
        engine: "loky", "dask", "sequential", or another joblib backend.
        address: Of the Dask scheduler, for the engine "dask".
        out: Run folder of the grid.
        redo: Train finished cells again.
        progress: Show a progress bar over cells.

    Returns:
        The study with the rates set, and the grid's table.

    Raises:
        ValueError: If the grid is empty, repeats a rate or holds one that is none, `on` is evaluated on what the arms
            are compared by, or the data cannot be split.
        RuntimeError: If for some arm no rate can be chosen; the message counts the runs that failed, diverged, and
            ended with a metric that is not finite.
    """
    # An array's own numbers, as its truth is no single one.
    multiples = multiples.tolist() if hasattr(multiples, "tolist") else list(multiples)
    if not multiples or len(set(multiples)) < len(multiples) or not all(0 < value < np.inf for value in multiples):
        raise ValueError(
            f"A grid of learning rates holds different positive multiples of the module's own, not {multiples}."
        )
    if on is None:
        on = held_out_problem(study.problem)
    elif on.monitor == study.problem.monitor and on.data == study.problem.data:
        raise ValueError(
            f"Tuning on {on.monitor!r}, by which the arms are compared afterwards, would favour arms by chance. Tune "
            "on a validation split; without `on`, a share of the training data is held out for it."
        )
    budget = on.budget if max_steps is None else Budget(max_steps=max_steps, eval_every=max_steps)
    arms = tuple(_at_rate(arm, multiple) for arm in study.arms for multiple in multiples)
    grid_study = Study(
        name=f"{study.name}_learning_rates",
        question=f"Which learning rate suits each arm of {study.name}?",
        arms=arms,
        reference=arms[0].name,
        problem=dataclasses.replace(on, budget=budget, target=None),
    )
    run = execute(
        grid_study, seeds=seeds, jobs=jobs, engine=engine, address=address, out=out, redo=redo, progress=progress
    )
    grid = _grid(study, multiples, run)
    chosen = {arm.name: _best(grid, arm.name, on) for arm in study.arms}
    grid["chosen"] = [chosen[row.arm] == row.multiple for row in grid.itertuples()]
    grid = grid.drop(columns=[name for name in ("not_finite", "failed") if not grid[name].any()])
    tuned = tuple(_with_rate(arm, chosen[arm.name]) for arm in study.arms)
    return Tuned(dataclasses.replace(study, arms=tuned), grid)


def _at_rate(arm: Arm, multiple: float) -> Arm:
    name, label = f"{arm.name}_x{multiple:g}", f"{arm.label}, rate x{multiple:g}"
    return dataclasses.replace(_with_rate(arm, multiple), name=name, label=label)


def _with_rate(arm: Arm, multiple: float) -> Arm:
    return dataclasses.replace(
        arm,
        factors={**arm.factors, "rate_multiple": multiple},
        callbacks=functools.partial(_callbacks_at_rate, arm.callbacks, multiple),
    )


def _callbacks_at_rate(make: Callable[[], list[Any]], multiple: float) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.scaled_learning_rate import ScaledLearningRate

    return [*make(), ScaledLearningRate(multiple)]


_COUNTS = ("diverged", "not_finite", "failed", "seeds")


def _grid(study: Study, multiples: Sequence[float], run: Run) -> pd.DataFrame:
    monitor = run.study.problem.monitor
    tried = [(arm, multiple) for arm in study.arms for multiple in multiples]
    ended = summarise(run.results, run.cells, run.study).set_index("arm") if len(run.results) else pd.DataFrame()
    ended = ended.reindex([_at_rate(*one).name for one in tried], columns=[monitor, "diverged", "not_finite", "seeds"])
    failures = run.cells.loc[run.cells["status"] == "failed", "arm"].value_counts()
    ended.insert(3, "failed", failures.reindex(ended.index))
    # The summary says nothing of a rate at which every seed failed.
    ended = ended.fillna(dict.fromkeys(_COUNTS, 0)).astype(dict.fromkeys(_COUNTS, int))
    ended.insert(0, "arm", [arm.name for arm, _ in tried])
    ended.insert(1, "multiple", [multiple for _, multiple in tried])
    return ended.reset_index(drop=True)


def _best(grid: pd.DataFrame, arm: str, on: Problem) -> float:
    rates = grid[grid["arm"] == arm]
    unusable = {
        "failed": rates["failed"],
        "diverged": rates["diverged"],
        f"kept finite weights and ended with a {on.monitor!r} that is not finite": rates["not_finite"],
    }
    usable = rates[(sum(unusable.values()) == 0) & (rates["seeds"] > 0)].sort_values("multiple")
    if usable.empty:
        said = ", ".join(f"{count.sum()} {words}" for words, count in unusable.items() if count.any())
        smaller = " Give smaller rates." if rates["diverged"].any() else ""
        undefined = f" See why {on.monitor!r} has no value on the data tuned on." if rates["not_finite"].any() else ""
        raise RuntimeError(
            f"At no learning rate of the grid did every run of arm {arm!r} end with a finite {on.monitor!r}: of "
            f"{rates[['failed', 'seeds']].sum(axis=None)} runs {said}.{smaller}{undefined}"
        )
    metric = usable[on.monitor]
    return float(usable.loc[metric.idxmax() if on.mode == "max" else metric.idxmin(), "multiple"])
