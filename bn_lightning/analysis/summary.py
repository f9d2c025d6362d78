"""The two tables of a study: one row per arm, and one row per arm compared with the reference."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bn_lightning.analysis.statistics import Interval, holm, mean_interval, sign_flip_test, verdict
from bn_lightning.analysis.study import Study
from bn_lightning.analysis.targets import median_of_censored, metric_curves, times_to_target


def final_metric(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The metric at the last evaluation of every cell.

    Args:
        results: The long table.
        study: The study.

    Returns:
        Arms as rows, seeds as columns; NaN for a run that diverged, or whose metric is NaN.
    """
    curves = metric_curves(results, study.problem.monitor).sort_values("step")
    last = curves.drop_duplicates(["arm", "seed"], keep="last")
    return last.pivot(index="arm", columns="seed", values="value").astype(float)


def summarise(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    """One row per arm: the metric at the end, and how soon the target was reached.

    Args:
        results: The long table.
        cells: One row per cell.
        study: The study.

    Returns:
        The columns arm, label, seeds, mean of the metric at the last step with its 95 % interval (over seeds where it
        is finite) and diverged; where any metric is not finite though its run did not diverge, also the number of such
        seeds, not_finite; with a target also median steps and seconds to it (infinite where half of the cells or more
        never reached it), their ranges over the cells that reached it, and the number that did not.

    Raises:
        ValueError: If the metric was not recorded.
    """
    final = final_metric(results, study)
    times = None if study.problem.target is None else times_to_target(results, study)
    diverged = _diverged(cells)
    rows = []
    for arm in study.arms:
        if arm.name not in final.index:
            continue
        values = final.loc[arm.name].reindex(_done(cells, arm.name))
        finite = values[np.isfinite(values)]
        interval = mean_interval(finite.to_numpy())
        row: dict[str, Any] = {
            "arm": arm.name,
            "label": arm.label,
            "seeds": len(values),
            study.problem.monitor: interval.mean,
            "low": interval.low,
            "high": interval.high,
            "diverged": sum((arm.name, seed) in diverged for seed in values.index.difference(finite.index)),
        }
        row["not_finite"] = len(values) - len(finite) - row["diverged"]
        if times is not None:
            row |= _times_of_arm(times[times["arm"] == arm.name])
        rows.append(row)
    table = pd.DataFrame(rows)
    return table if len(table) and table["not_finite"].any() else table.drop(columns="not_finite", errors="ignore")


def _diverged(cells: pd.DataFrame) -> set[tuple[str, int]]:
    """Cells whose weights were not finite; a metric can be NaN without that."""
    found = cells[cells["label"] == "diverged"]
    return set(zip(found["arm"], found["seed"], strict=True))


def _done(cells: pd.DataFrame, arm: str) -> list[int]:
    return sorted(cells.loc[(cells["arm"] == arm) & (cells["status"] == "done"), "seed"])


def _times_of_arm(times: pd.DataFrame) -> dict[str, Any]:
    reached = times[~times["censored"].astype(bool)]
    row: dict[str, Any] = {}
    for unit in ("steps", "seconds"):
        row[f"{unit}_to_target"] = median_of_censored(times[unit], times["censored"])
        row[f"{unit}_min"] = float(reached[unit].min()) if len(reached) else math.nan
        row[f"{unit}_max"] = float(reached[unit].max()) if len(reached) else math.nan
    return {**row, "censored": len(times) - len(reached)}


def compare(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Every arm against the reference, in pairs of equal seeds.

    Compares the metric at the end as a difference, arm minus reference, and steps and seconds to the target as the
    ratio reference over arm, so above 1 the arm is faster; ratios are averaged and tested as logarithms. Pairs in which
    a run diverged or its metric is not finite, or in which a time is censored or zero, are left out of the estimate and
    counted. Leaving out pairs whose reference is censored understates how much faster the arm is, and a target that is
    reached before training has no ratio, so where any pair is left out no verdict is given on the ratio. Holm's
    correction is over all comparisons of the table that have a p.

    Args:
        results: The long table.
        cells: One row per cell.
        study: The study.

    Returns:
        The columns arm, reference, quantity, kind ("difference" or "ratio"), estimate, low, high (95 %), pairs,
        left_out, method, p, smallest_p, holm_p and verdict; empty if nothing can be compared.

    Raises:
        ValueError: If the metric was not recorded.
    """
    rows: list[dict[str, Any]] = []
    final = final_metric(results, study)
    times = None if study.problem.target is None else times_to_target(results, study)
    diverged = _diverged(cells)
    for arm in study.arms:
        if arm.name == study.reference or not {arm.name, study.reference} <= set(final.index):
            continue
        seeds = sorted(set(_done(cells, arm.name)) & set(_done(cells, study.reference)))
        pair = final.loc[[arm.name, study.reference], seeds].to_numpy()
        gone = np.array([any((name, s) in diverged for name in (arm.name, study.reference)) for s in seeds], dtype=bool)
        reasons = {
            "{left_out} diverged pairs left out": gone,
            "{left_out} pairs without a finite metric left out": ~gone,
        }
        rows.append(_row(arm.name, study, study.problem.monitor, "difference", pair[0] - pair[1], reasons))
        if times is None:
            continue
        by_cell = times.set_index(["arm", "seed"])
        reasons = _reasons_without_ratio(by_cell, (arm.name, study.reference), seeds)
        for unit in ("steps", "seconds"):
            of_arm, of_reference = (_times(by_cell, name, seeds, unit) for name in (arm.name, study.reference))
            rows.append(_row(arm.name, study, f"{unit} to target", "ratio", of_reference - of_arm, reasons))
    if not rows:
        return pd.DataFrame(columns=[*_COLUMNS])
    tests = sum(not math.isnan(row["p"]) for row in rows)  # those that Holm's correction counts
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm_p"] = adjusted
        row["verdict"] = _words(row, study, comparisons=tests)
    return pd.DataFrame([{name: row[name] for name in _COLUMNS} for row in rows])


_COLUMNS = (
    "arm",
    "reference",
    "quantity",
    "kind",
    "estimate",
    "low",
    "high",
    "pairs",
    "left_out",
    "method",
    "p",
    "smallest_p",
    "holm_p",
    "verdict",
)


def _times(by_cell: pd.DataFrame, arm: str, seeds: list[int], unit: str) -> np.ndarray:
    """Logarithms of the times, NaN where one is censored or zero."""
    rows = by_cell.loc[[(arm, seed) for seed in seeds]]
    times = rows[unit].to_numpy(dtype=float)
    usable = ~rows["censored"].to_numpy(dtype=bool) & (times > 0)
    return np.log(np.where(usable, times, np.nan))


def _reasons_without_ratio(by_cell: pd.DataFrame, arms: tuple[str, str], seeds: list[int]) -> dict[str, np.ndarray]:
    """Words for what can leave a pair without a ratio of times, and the pairs that they hold for."""
    cells = [by_cell.loc[[(arm, seed) for seed in seeds]] for arm in arms]
    censored = np.any([rows["censored"].to_numpy(dtype=bool) for rows in cells], axis=0)
    at_start = np.any([rows["steps"].to_numpy() == 0 for rows in cells], axis=0) & ~censored
    return {
        "censored in {left_out} of {pairs} pairs": censored,
        "reached before training in {left_out} of {pairs} pairs": at_start,
        "not timed in {left_out} of {pairs} pairs": ~censored & ~at_start,
    }


def _row(
    arm: str, study: Study, quantity: str, kind: str, differences: np.ndarray, reasons: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    usable = np.isfinite(differences)
    finite = differences[usable]
    counts = {words: int((holds & ~usable).sum()) for words, holds in reasons.items()}
    interval = mean_interval(finite)
    p, smallest = sign_flip_test(finite)
    shown = np.exp if kind == "ratio" else float
    return {
        "arm": arm,
        "reference": study.reference,
        "quantity": quantity,
        "kind": kind,
        **{name: float(shown(getattr(interval, of))) for name, of in _ENDS.items()},
        "pairs": len(finite),
        "left_out": len(differences) - len(finite),
        "method": interval.method,
        "p": p,
        "smallest_p": smallest,
        "interval": interval,
        "remarks": [words.format(left_out=n, pairs=len(differences)) for words, n in counts.items() if n],
    }


_ENDS = {"estimate": "mean", "low": "low", "high": "high"}


def _words(row: dict[str, Any], study: Study, *, comparisons: int) -> str:
    interval: Interval = row["interval"]
    if row["left_out"] and row["kind"] == "ratio":
        return "; ".join(row["remarks"])
    if row["kind"] == "ratio":
        higher, lower = "faster", "slower"
    else:
        higher, lower = ("better", "worse") if study.problem.mode == "max" else ("worse", "better")
    # Holm multiplies the smallest p of all by their number, and at best every comparison has this one.
    smallest = min(1.0, row["smallest_p"] * comparisons)
    words = verdict(interval, row["holm_p"], smallest, higher=higher, lower=lower)
    return "; ".join([words, *row["remarks"]])
