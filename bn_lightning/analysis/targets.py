"""How soon each cell reaches a target, with those that never did kept as right-censored."""

import math

import numpy as np
import pandas as pd

from bn_lightning.analysis.study import Study

TIME_COLUMNS = ("arm", "seed", "steps", "seconds", "censored")


def times_to_target(results: pd.DataFrame, study: Study, *, target: float | None = None) -> pd.DataFrame:
    """First evaluation at which each cell's metric reaches the target, see `has_reached`.

    A cell that never reaches it is right-censored: its time is later than its last observation, by how much is unknown.
    Steps are known to the spacing of evaluations. A run that reached the target and diverged later did reach it.

    Args:
        results: The long table.
        study: The study; its problem names the metric and which way is better.
        target: The value to reach; the problem's own by default.

    Returns:
        One row per cell with the columns arm, seed, steps (optimizer steps), seconds (of training; NaN where they were
        not recorded) and censored; for a censored cell steps and seconds are those of its last finite observation.

    Raises:
        ValueError: If there is no target, or the metric was not recorded.
    """
    problem = study.problem
    goal = problem.target if target is None else target
    if goal is None:
        raise ValueError(f"Problem {problem.name!r} has no target to time; give target (--target).")
    curves = metric_curves(results, problem.monitor)
    seconds = results[results["quantity"] == "training_seconds"].set_index(["arm", "seed", "step"])["value"]
    rows = []
    for (arm, seed), curve in curves.groupby(["arm", "seed"], sort=False):
        finite = curve[np.isfinite(curve["value"])].sort_values("step")
        steps = finite.loc[has_reached(finite["value"], goal, problem.mode), "step"]
        step = int(steps.iloc[0]) if len(steps) else int(finite["step"].max()) if len(finite) else 0
        rows.append((arm, int(seed), step, float(seconds.get((arm, seed, step), math.nan)), not len(steps)))
    return pd.DataFrame(rows, columns=list(TIME_COLUMNS))


def has_reached(values: pd.Series, target: float, mode: str) -> pd.Series:
    """Where a metric is at a target or better, up to a millionth of the target.

    Metrics are averaged in float32: 70 right of 100 are logged as 0.69999999, which is meant to be 0.7.

    Args:
        values: The metric.
        target: The target.
        mode: "max" where higher values are better, "min" where lower ones are.

    Returns:
        True or False for each; False for NaN.

    Example:
        >>> has_reached(pd.Series([0.69, np.float32(0.7), np.nan]), 0.7, "max").tolist()
        [False, True, False]
    """
    slack = 1e-6 * abs(target)
    return values >= target - slack if mode == "max" else values <= target + slack


def metric_curves(results: pd.DataFrame, monitor: str) -> pd.DataFrame:
    """The rows of one metric of the whole model.

    Args:
        results: The long table.
        monitor: The metric.

    Returns:
        Its rows.

    Raises:
        ValueError: If it was not recorded.
    """
    whole = results[results["layer"] == ""]
    rows = whole[whole["quantity"] == monitor]
    if rows.empty:
        known = ", ".join(sorted(set(whole["quantity"]))) or "nothing"
        raise ValueError(f"The results hold no {monitor!r} of the whole model; they hold {known}.")
    return rows


def median_of_censored(times: pd.Series, censored: pd.Series) -> float:
    """Median that counts a censored time as later than all observed ones.

    Args:
        times: Times, in any unit.
        censored: Where the time is only a lower bound.

    Returns:
        The median, or infinity where half of the cells or more are censored at its place.

    Example:
        >>> median_of_censored(pd.Series([50, 100, 500]), pd.Series([False, False, True]))
        100.0
    """
    values = np.sort(np.where(censored.to_numpy(dtype=bool), np.inf, times.to_numpy(dtype=float)))
    middle = len(values) // 2
    if not len(values):
        return math.nan
    return float(values[middle]) if len(values) % 2 else float((values[middle - 1] + values[middle]) / 2)
