"""The best value of a run's metric, and a target fixed by pilot runs whose seeds no study uses."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Study
from bn_lightning.analysis.targets import metric_curves

PILOT_SEEDS = (100, 101)


def best_metric(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The best value of the metric over all evaluations of every cell, before a divergence too.

    The best of many evaluations on one set is higher than that set can promise for others; it is what papers report
    as "maximum accuracy".

    Args:
        results: The long table.
        study: The study; its problem names the metric and which way is better.

    Returns:
        Arms as rows, seeds as columns; NaN for a cell without a finite value.

    Raises:
        ValueError: If the metric was not recorded.
    """
    curves = metric_curves(results, study.problem.monitor)
    curves = curves.assign(value=curves["value"].where(np.isfinite(curves["value"])))
    cells = curves.groupby(["arm", "seed"], sort=False)["value"]
    best = cells.max() if study.problem.mode == "max" else cells.min()
    return best.unstack("seed").astype(float)


def pilot_target(
    study: Study,
    *,
    arm: str | None = None,
    seeds: Iterable[int] = PILOT_SEEDS,
    jobs: int = 1,
    out: str | Path,
    progress: bool = True,
) -> float:
    """The best value that every pilot run of one arm reached: a target that this arm can be expected to reach.

    Source: Ioffe & Szegedy 2015, section 4.2.2, which times how soon each network reaches the best accuracy of the one
    without batch norm. A target taken from the runs that are compared would favour some of them by chance.

    Args:
        study: The study.
        arm: Name of the arm; the reference by default.
        seeds: Seeds of the pilots, other than those of the study.
        jobs: Number of processes.
        out: Run folder of the pilots.
        progress: Show a progress bar.

    Returns:
        The worst of the pilots' best values.

    Raises:
        UnknownNameError: If there is no such arm.
        RuntimeError: If a pilot failed, or its metric was never finite.
    """
    chosen = study.arm(study.reference if arm is None else arm)
    pilots = dataclasses.replace(
        study,
        name=f"{study.name}_pilots",
        arms=(chosen,),
        reference=chosen.name,
        problem=dataclasses.replace(study.problem, target=None),
        figures=(),
    )
    run = execute(pilots, seeds=seeds, jobs=jobs, out=out, progress=progress)
    if run.failures:
        raise RuntimeError(
            f"{len(run.failures)} of the pilot runs failed, so they fix no target: {run.failures[0].error}"
        )
    best = best_metric(run.results, pilots).to_numpy()
    if not np.isfinite(best).all():
        raise RuntimeError(
            f"{study.problem.monitor} of arm {chosen.name!r} was not finite in {int((~np.isfinite(best)).sum())} of "
            f"{best.size} pilot runs, so they fix no target. Give a smaller learning rate."
        )
    return float(best.min() if study.problem.mode == "max" else best.max())
