"""The two heat maps of a study over a grid of settings: the metric at the end, and the share of runs that learned."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.factor_table import factor_table, learned, learning_threshold
from bn_lightning.analysis.plots.factor_maps import plot_factor_maps
from bn_lightning.analysis.study import Figure, Problem, Study

PANEL = "panel"


def map_figures(
    problem: Problem, *, x: str, y: str, panel: Sequence[str], panels: Mapping[str, str], words: Mapping[str, str]
) -> tuple[Figure, ...]:
    """Heat maps of the metric and of the share of seeds that learned.

    Args:
        problem: What is trained.
        x: Factor of the columns.
        y: Factor of the rows.
        panel: Factors of the panels.
        panels: Their titles, by the levels of these factors with "_" between.
        words: Words for the factors of columns and rows.

    Returns:
        The figures "metric" and "learned".
    """
    metric = problem.monitor.replace("_", " ")
    layout: dict[str, Any] = {"x": x, "y": y, "panels": panels, "words": words}
    how = (
        f"target, {problem.target:g}"
        if problem.target is not None
        else "middle between the median before training and the best at the end, over all runs"
    )
    return (
        Figure(
            name="metric",
            caption=f"{metric} at the last step, mean over seeds. A star marks fields of which runs diverged: they are "
            "in no mean. A cross on grey: all runs diverged.",
            draw=functools.partial(_draw_metric, list(panel), layout),
        ),
        Figure(
            name="learned",
            caption=f"Share of seeds that learned: {metric} at the last step is at the {how}, or better. A run that "
            "diverged did not learn.",
            draw=functools.partial(_draw_learned, list(panel), layout),
        ),
    )


def _draw_metric(
    panel: list[str], layout: Mapping[str, Any], results: pd.DataFrame, cells: pd.DataFrame, study: Study
) -> MatplotlibFigure:
    label = f"{study.problem.monitor.replace('_', ' ')} at the last step"
    return plot_factor_maps(_with_panels(factor_table(results, study), panel), panel=PANEL, **layout, label=label)


def _draw_learned(
    panel: list[str], layout: Mapping[str, Any], results: pd.DataFrame, cells: pd.DataFrame, study: Study
) -> MatplotlibFigure:
    better = "≥" if study.problem.mode == "max" else "≤"
    metric = study.problem.monitor.replace("_", " ")
    label = f"share of seeds with {metric} {better} {learning_threshold(results, study):.3g}"
    table = _with_panels(learned(results, study), panel)
    return plot_factor_maps(table, panel=PANEL, **layout, label=label, bounds=(0.0, 1.0))


def _with_panels(table: pd.DataFrame, panel: list[str]) -> pd.DataFrame:
    return table.assign(**{PANEL: table[panel].agg("_".join, axis="columns")})
