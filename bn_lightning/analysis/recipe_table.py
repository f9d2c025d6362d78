"""The table of the paper's second experiment, with this run's numbers beside the published ones."""

import math
from typing import Any

import pandas as pd

from bn_lightning.analysis.pilots import best_metric
from bn_lightning.analysis.statistics import mean_interval
from bn_lightning.analysis.study import Study
from bn_lightning.analysis.summary import compare
from bn_lightning.analysis.targets import median_of_censored, times_to_target

PAPER = {
    "plain": (31.0, 72.2),
    "plain_x5": (math.nan, math.nan),
    "baseline": (13.3, 72.7),
    "x5": (2.1, 73.0),
    "x30": (2.7, 74.8),
    "x5_sigmoid": (math.nan, 69.8),
}
"""Ioffe & Szegedy 2015, figure 3: million steps to 72.2 %, and the largest accuracy, by arm. One run each, ImageNet."""


def recipe_table(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Steps to the target, how many times fewer than the reference's, and the best value of the metric, by arm.

    Args:
        results: The long table.
        cells: One row per cell.
        study: The study; arms that the paper does not have stand without its numbers.

    Returns:
        One row per arm that was run, its name as the index, with the columns label, steps (median to the target; NaN
        without a target, infinite where half of the seeds or more never reached it), reached, seeds, ratio
        (reference over arm, the geometric mean over pairs of seeds that both reached it) with its 95 % interval
        low and high, best (mean over seeds of the best evaluation) with its interval best_low and best_high,
        and the paper's paper_steps (millions), paper_ratio and paper_best (per cent).

    Raises:
        ValueError: If the metric was not recorded.
    """
    best = best_metric(results, study)
    times = None if study.problem.target is None else times_to_target(results, study)
    comparisons = compare(results, cells, study)
    ratios = comparisons[comparisons["quantity"] == "steps to target"].set_index("arm")
    rows: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        if arm.name not in best.index:
            continue
        values = best.loc[arm.name].dropna()
        interval = mean_interval(values.to_numpy())
        row: dict[str, Any] = {
            "label": arm.label,
            "steps": math.nan,
            "reached": 0,
            "seeds": int(best.loc[arm.name].size),
            **dict.fromkeys(("ratio", "low", "high"), math.nan),
            "best": interval.mean,
            "best_low": interval.low,
            "best_high": interval.high,
        }
        if times is not None:
            own = times[times["arm"] == arm.name]
            row["steps"] = median_of_censored(own["steps"], own["censored"])
            row["reached"] = int((~own["censored"].astype(bool)).sum())
        if arm.name in ratios.index:
            found = ratios.loc[arm.name]
            row |= {"ratio": found["estimate"], "low": found["low"], "high": found["high"]}
        steps, accuracy = PAPER.get(arm.name, (math.nan, math.nan))
        row |= {"paper_steps": steps, "paper_ratio": PAPER["plain"][0] / steps, "paper_best": accuracy}
        rows[arm.name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def recipe_text(table: pd.DataFrame, study: Study) -> tuple[list[str], list[list[str]]]:
    """Write the table out.

    Args:
        table: What `recipe_table` returned.
        study: The study, for its target and metric.

    Returns:
        Headers and rows of text. What there is no number for is "–".
    """
    metric = study.problem.monitor.replace("_", " ")
    target = study.problem.target
    timed = ["steps to target" if target is None else f"steps to {target:.4g}", "ratio", "95 % interval"]
    headers = ["", *timed, f"best {metric}", "paper: steps", "ratio", "best"]
    rows = []
    for row in table.itertuples():
        steps = "–" if math.isnan(row.steps) else f"{row.steps:,.0f}" if math.isfinite(row.steps) else "not reached"
        some = f" ({row.reached} of {row.seeds})" if target is not None and row.reached < row.seeds else ""
        spread = "" if math.isnan(row.best_low) else f" ± {row.best_high - row.best:.4f}"
        rows.append(
            [
                row.label,
                steps + some,
                _number(row.ratio, "{:.3g}"),
                "–" if math.isnan(row.low) else f"[{row.low:.3g}, {row.high:.3g}]",
                _number(row.best, "{:.4f}") + spread,
                _number(row.paper_steps, "{:.1f} M"),
                _number(row.paper_ratio, "{:.1f}"),
                _number(row.paper_best, "{:.1f} %"),
            ]
        )
    return headers, rows


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "–"
