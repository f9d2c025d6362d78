"""The figures that suit any study: its metric over steps, and what its target shows."""

import functools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.curves import plot_curves
from bn_lightning.analysis.plots.differences import plot_differences
from bn_lightning.analysis.plots.targets import plot_steps_to_target
from bn_lightning.analysis.study import Figure, Problem, Study
from bn_lightning.analysis.summary import compare
from bn_lightning.analysis.targets import times_to_target
from bn_lightning.figure_text import plain_text


def standard_figures(study: Study) -> tuple[Figure, ...]:
    """Figures that need nothing but the study's own metric and target.

    Args:
        study: The study; its arms' labels and order are those of the figures.

    Returns:
        The metric over steps and the paired differences at the end; with a target also the steps to it.

    Example:
        >>> from bn_lightning.analysis.study import Arm, Budget, Problem
        >>> budget = Budget(max_steps=100)
        >>> problem = Problem(name="mine", module=object, data=object, monitor="val_loss", mode="min", budget=budget)
        >>> arms = (Arm(name="a"), Arm(name="b"))
        >>> study = Study(name="mine", question="?", arms=arms, reference="a", problem=problem)
        >>> [figure.name for figure in standard_figures(study)]
        ['metric', 'differences']
    """
    metric = study.problem.monitor.replace("_", " ")
    figures = [
        metric_figure(study.problem, log_x=False),
        Figure(
            name="differences",
            caption=f"Difference to {study.arm(study.reference).label} in {metric} at the last step, seed by seed, "
            "with 95 % intervals.",
            draw=_differences,
        ),
    ]
    figures[1:1] = steps_figures(study.problem)
    return tuple(figures)


def metric_figure(problem: Problem, *, log_x: bool = True) -> Figure:
    """The figure "metric": the metric of every arm over optimizer steps.

    Args:
        problem: What is trained.
        log_x: Whether steps have a logarithmic scale.

    Returns:
        The figure.
    """
    metric = problem.monitor.replace("_", " ")
    caption = f"{metric} over optimizer steps: mean over seeds with its 95 % t interval, single seeds thin."
    return Figure(name="metric", caption=caption, draw=functools.partial(_metric, log_x))


def steps_figures(problem: Problem) -> tuple[Figure, ...]:
    """The figure "steps_to_target": when every seed of every arm first reached the target.

    Args:
        problem: What is trained.

    Returns:
        The figure, or none where the problem has no target.
    """
    if problem.target is None:
        return ()
    words = f"{problem.monitor.replace('_', ' ')} {problem.target:g}"
    caption = f"Optimizer steps to {words}, seed by seed; the bar is the median."
    return (Figure(name="steps_to_target", caption=caption, draw=_steps_to_target),)


def labels_of(study: Study) -> dict[str, str]:
    """The labels of a study's arms by name, in their order."""
    return {arm.name: arm.label for arm in study.arms}


def _metric(log_x: bool, results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    problem = study.problem
    return figure_of(plot_curves(results, problem.monitor, target=problem.target, arms=labels_of(study), log_x=log_x))


def _steps_to_target(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    words = f"optimizer steps to {study.problem.monitor.replace('_', ' ')} {study.problem.target:g}"
    return figure_of(plot_steps_to_target(times_to_target(results, study), arms=labels_of(study), xlabel=words))


def _differences(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    metric = study.problem.monitor
    reference = plain_text(study.arm(study.reference).label)
    words = f"{metric.replace('_', ' ')}: difference to {reference}"
    comparisons = compare(results, cells, study)
    return figure_of(plot_differences(comparisons, quantity=metric, arms=labels_of(study), xlabel=words))


def figure_of(ax: Axes) -> MatplotlibFigure:
    """The figure that axes were drawn on."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # noqa: S101 - the plots above always draw on a figure of their own
    return figure
