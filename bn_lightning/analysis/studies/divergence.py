"""What do covariate shift and smoothness look like in runs that oscillate, get stuck or diverge?"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.measures_by_run import aligned_at_blow_up, measures_by_run
from bn_lightning.analysis.plots.run_labels import plot_before_blow_up, plot_label_counts, plot_measures_by_label
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.run_labels import label_cells
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

MULTIPLES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the module's own learning rate: from too small to far too large."""
NORMS = {
    "none": "without BN",
    "before": "BN before",
    "after": "BN after",
    "moving": "moving averages",
}
DENSE_UNTIL = 40  # optimizer steps: most runs that blow up do so by then
MEASUREMENTS = 30  # of the rest of a run
PROBE_SIZE = 300
WINDOW = 30  # optimizer steps before the blow-up that are drawn


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, which do diverge, for 300 steps.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir, activation="relu", lr=0.1, weight_std=0.1)
    return dataclasses.replace(problem, budget=Budget(max_steps=300, eval_every=50), target=None)


def study(problem: Problem) -> Study:
    """Train over a grid of learning rates, label each run by its training loss, and set the measures beside the labels.

    Arms are the norm (none, batch norm before and after the nonlinearity, and the one the sources warn of: before, but
    normalising by moving averages in training) crossed with multiples of the module's own learning rate. Gradient
    shift, activation shift and smoothness are measured in each of the first 40 steps and 30 times more, with every
    batch norm as it is in training; what comes after the blow-up is left out of the summary.

    4 × 6 = 24 arms, of 300 steps on the digits: 11 s of one core a cell, some 14 minutes for 6 seeds on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"{norm}_x{multiple:g}",
            label=f"{words}, rate x{multiple:g}",
            factors={"norm": norm, "rate": multiple},
            callbacks=functools.partial(_callbacks, norm, multiple, problem.budget.max_steps),
        )
        for norm, words in NORMS.items()
        for multiple in MULTIPLES
    )
    return Study(
        name="divergence",
        question="What do covariate shift and smoothness look like in runs that oscillate, get stuck or diverge?",
        source="open in Santurkar et al. 2018; moving averages: Ioffe 2017, section 3",
        problem=problem,
        reference="none_x1",
        arms=arms,
        figures=(
            Figure(
                name="labels",
                caption=(
                    "How runs ended, by norm and learning rate. By the training loss, with l0 the loss of step 0: "
                    "diverged, if it is not finite or the median of the last quarter of steps is above 2 l0; else "
                    "oscillating, if the 10th and 90th percentile of that quarter are more than l0 / 4 apart; else "
                    "stuck, if its median is above 0.9 l0; else converged. Runs with l0 not above 0 are left out."
                ),
                draw=_draw_labels,
            ),
            Figure(
                name="measures",
                caption=(
                    "Each measure by how the run ended: one marker a run, the median over layers and over the steps "
                    "before the blow-up. Dead layers have no shift, not a shift of 0, and are left out."
                ),
                draw=_draw_measures,
            ),
            Figure(
                name="before_blow_up",
                caption="Diverged runs over the steps before the blow-up: median over runs, and the middle half.",
                draw=_draw_before,
            ),
        ),
    )


def _callbacks(norm: str, multiple: float, max_steps: int) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.scaled_learning_rate import ScaledLearningRate
    from bn_lightning.analysis.step_loss import StepLoss
    from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
    from bn_lightning.layers.moving_average_norm import MovingAverageNorm

    options: dict[str, Any] = {
        "every_n_steps": max(1, max_steps // MEASUREMENTS),
        "dense_until": DENSE_UNTIL,
        "probe_size": PROBE_SIZE,
        "warn": False,  # layers that die and gradients that overflow are what this study looks for
        "figures": False,
    }
    callbacks = [
        ScaledLearningRate(multiple),
        StepLoss(),
        CovariateShiftMonitor(**options),
        LossSmoothnessMonitor(**options, normalised=False),
    ]
    if norm == "none":
        return callbacks
    chosen: Any = MovingAverageNorm if norm == "moving" else "batch"
    return [BatchNormInsertion(placement="after" if norm == "after" else "before", norm=chosen), *callbacks]


def _factors(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Norm and rate of each row's arm."""
    factors = {arm.name: arm.factors for arm in study.arms}
    return table.assign(
        group=table["arm"].map(lambda arm: factors[arm]["norm"]),
        rate=table["arm"].map(lambda arm: factors[arm]["rate"]),
    )


def _draw_labels(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    return plot_label_counts(_factors(label_cells(results), study), groups=list(NORMS), words=NORMS)


def _draw_measures(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    measures = measures_by_run(results, label_cells(results))
    return plot_measures_by_label(_factors(measures, study), groups=list(NORMS), words=NORMS)


def _draw_before(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    aligned = aligned_at_blow_up(results, label_cells(results), window=WINDOW)
    return plot_before_blow_up(_factors(aligned, study), groups=list(NORMS), words=NORMS)
