"""The figures that suit any study: its metric over steps, and what its target shows."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.curves import plot_curves
from bn_lightning.analysis.plots.differences import plot_differences
from bn_lightning.analysis.plots.targets import plot_steps_to_target
from bn_lightning.analysis.study import Figure, Study
from bn_lightning.analysis.summary import compare
from bn_lightning.analysis.targets import times_to_target


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
        Figure(name="metric", caption=f"The metric over optimizer steps: {metric}.", draw=_metric),
        Figure(
            name="differences",
            caption=f"Difference to {study.arm(study.reference).label} in {metric} at the last step, seed by seed, "
            "with 95 % intervals.",
            draw=_differences,
        ),
    ]
    if study.problem.target is not None:
        caption = f"Optimizer steps until {metric} first reached {study.problem.target:g}, for every seed."
        figures.insert(1, Figure(name="steps_to_target", caption=caption, draw=_steps_to_target))
    return tuple(figures)


def labels_of(study: Study) -> dict[str, str]:
    """The labels of a study's arms by name, in their order."""
    return {arm.name: arm.label for arm in study.arms}


def _metric(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    problem = study.problem
    return figure_of(plot_curves(results, problem.monitor, target=problem.target, arms=labels_of(study)))


def _steps_to_target(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    words = f"optimizer steps to {study.problem.monitor.replace('_', ' ')} {study.problem.target:g}"
    return figure_of(plot_steps_to_target(times_to_target(results, study), arms=labels_of(study), xlabel=words))


def _differences(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    metric = study.problem.monitor
    words = f"{metric.replace('_', ' ')}: difference to {study.arm(study.reference).label}"
    comparisons = compare(results, cells, study)
    return figure_of(plot_differences(comparisons, quantity=metric, arms=labels_of(study), xlabel=words))


def figure_of(ax: Axes) -> MatplotlibFigure:
    """The figure that axes were drawn on."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # noqa: S101 - the plots above always draw on a figure of their own
    return figure
