"""Give every arm the learning rate that suits it, chosen on data held out from training, from a named grid."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bn_lightning.analysis.held_out import held_out_problem
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.analysis.study import Arm, Budget, Problem, Study
from bn_lightning.analysis.summary import final_metric

GRID_SEEDS = (1000, 1001)  # apart from those of the runs compared


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A study whose arms have rates of their own.

    Args:
        study: The study, on its own problem; each arm's rate is among its factors, as `rate_multiple`.
        grid: One row per arm and rate: arm, multiple, the metric's mean over the tuning seeds, how many seeds diverged,
            how many were trained, chosen.
    """

    study: Study
    grid: pd.DataFrame


def tune_learning_rate(
    study: Study,
    *,
    multiples: Sequence[float],
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

    The metric is `on.monitor` at the last step, averaged over the tuning seeds; a rate at which any seed diverged is
    not chosen. Where rates tie, the smallest is taken. Rates of all optimizers are multiplied before the first step, so
    any module will do. Finished cells in `out` are not trained again unless told to.

    Args:
        study: The study.
        multiples: The grid, as multiples of the arm's own learning rate.
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
        RuntimeError: If for some arm no rate could be trained.
    """
    if not multiples or len(set(multiples)) < len(multiples) or not all(0 < value < np.inf for value in multiples):
        raise ValueError(
            f"A grid of learning rates holds different positive multiples of the module's own, not {list(multiples)}."
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
    final = final_metric(run.results, grid_study) if len(run.results) else pd.DataFrame()
    rows = []
    for arm in study.arms:
        for multiple in multiples:
            name = _at_rate(arm, multiple).name
            values = final.loc[name].to_numpy() if name in final.index else np.array([])
            finite = values[np.isfinite(values)]
            rows.append((arm.name, multiple, mean_interval(finite).mean, len(values) - len(finite), len(values)))
    grid = pd.DataFrame(rows, columns=["arm", "multiple", on.monitor, "diverged", "seeds"])
    chosen = {arm.name: _best(grid, arm.name, on) for arm in study.arms}
    grid["chosen"] = [chosen[row.arm] == row.multiple for row in grid.itertuples()]
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


def _best(grid: pd.DataFrame, arm: str, on: Problem) -> float:
    usable = grid[(grid["arm"] == arm) & (grid["diverged"] == 0) & (grid["seeds"] > 0)].sort_values("multiple")
    if usable.empty:
        raise RuntimeError(
            f"No learning rate of the grid trained arm {arm!r} without diverging or failing. Give smaller rates."
        )
    metric = usable[on.monitor]
    return float(usable.loc[metric.idxmax() if on.mode == "max" else metric.idxmin(), "multiple"])
