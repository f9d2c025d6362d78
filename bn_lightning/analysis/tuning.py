"""Give every arm the learning rate that suits it, chosen on the validation split from a named grid."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.analysis.study import Arm, Budget, Problem, Study
from bn_lightning.analysis.summary import final_metric

GRID_SEEDS = (1000, 1001)  # apart from those of the runs compared


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A study whose arms have rates of their own.

    Args:
        study: The study, on its own problem, with the chosen rate among each arm's options.
        grid: One row per arm and rate: arm, lr, the metric's mean over the tuning seeds, diverged, chosen.
    """

    study: Study
    grid: pd.DataFrame


def tune_learning_rate(
    study: Study,
    *,
    on: Problem,
    rates: Sequence[float],
    seeds: Iterable[int] = GRID_SEEDS,
    max_steps: int | None = None,
    jobs: int = 1,
    engine: str = "loky",
    out: str | Path,
    progress: bool = True,
) -> Tuned:
    """Train every arm at every rate of a grid, and keep for each arm the rate with the best final metric.

    The metric is `on.monitor` at the last step, averaged over the tuning seeds; a rate at which any seed diverged is
    not chosen. Where rates tie, the smallest is taken. Finished cells in `out` are not trained again.

    Args:
        study: The study; its problem's module takes an option `lr`.
        on: The problem to tune on: the same training, evaluated on a validation split and never on the test set.
        rates: The grid.
        seeds: Seeds for tuning alone.
        max_steps: Optimizer steps of a tuning run; by default those of `on`.
        jobs: Number of processes.
        engine: A joblib backend.
        out: Run folder of the grid.
        progress: Show a progress bar over cells.

    Returns:
        The study with the rates set, and the grid's table.

    Raises:
        ValueError: If the grid is empty or repeats a rate, or `on` is evaluated on the study's own metric.
        RuntimeError: If for some arm no rate could be trained.
    """
    if not rates or len(set(rates)) < len(rates):
        raise ValueError(f"The grid of learning rates is empty or repeats one: {list(rates)}.")
    if on.monitor == study.problem.monitor:
        raise ValueError(
            f"Tuning on {on.monitor!r}, by which the arms are compared afterwards, would favour arms by chance. Tune "
            "on a validation split, whose metric has another name."
        )
    budget = on.budget if max_steps is None else Budget(max_steps=max_steps, eval_every=max_steps)
    arms = tuple(_at_rate(arm, rate) for arm in study.arms for rate in rates)
    grid_study = Study(
        name=f"{study.name}_learning_rates",
        question=f"Which learning rate suits each arm of {study.name}?",
        arms=arms,
        reference=arms[0].name,
        problem=dataclasses.replace(on, budget=budget, target=None),
    )
    run = execute(grid_study, seeds=seeds, jobs=jobs, engine=engine, out=out, progress=progress)
    final = final_metric(run.results, grid_study) if len(run.results) else pd.DataFrame()
    rows = []
    for arm in study.arms:
        for rate in rates:
            name = _at_rate(arm, rate).name
            values = final.loc[name].to_numpy() if name in final.index else np.array([])
            finite = values[np.isfinite(values)]
            rows.append((arm.name, rate, mean_interval(finite).mean, len(values) - len(finite), len(values)))
    grid = pd.DataFrame(rows, columns=["arm", "lr", on.monitor, "diverged", "seeds"])
    chosen = {arm.name: _best(grid, arm.name, on) for arm in study.arms}
    grid["chosen"] = [chosen[row.arm] == row.lr for row in grid.itertuples()]
    tuned = tuple(dataclasses.replace(arm, options={**arm.options, "lr": chosen[arm.name]}) for arm in study.arms)
    return Tuned(dataclasses.replace(study, arms=tuned), grid)


def _at_rate(arm: Arm, rate: float) -> Arm:
    return dataclasses.replace(
        arm,
        name=f"{arm.name}_lr{rate:g}",
        label=f"{arm.label}, rate {rate:g}",
        factors={**arm.factors, "lr": rate},
        options={**arm.options, "lr": rate},
    )


def _best(grid: pd.DataFrame, arm: str, on: Problem) -> float:
    usable = grid[(grid["arm"] == arm) & (grid["diverged"] == 0) & (grid["seeds"] > 0)].sort_values("lr")
    if usable.empty:
        raise RuntimeError(
            f"No learning rate of the grid trained arm {arm!r} without diverging or failing. Give smaller rates."
        )
    metric = usable[on.monitor]
    return float(usable.loc[metric.idxmax() if on.mode == "max" else metric.idxmin(), "lr"])
