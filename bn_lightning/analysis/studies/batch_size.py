"""How small may a batch be for batch norm, and which statistics suit small ones in evaluation?"""

import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.factor_table import factor_table
from bn_lightning.analysis.plots.factor_lines import plot_factor_lines
from bn_lightning.analysis.studies._relu_digits import relu_digits
from bn_lightning.analysis.studies.recalibration import ESTIMATORS, RUNNING
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
REFERENCE_SIZE = 64
"""The budget counts steps of so many samples."""
NORMS = {"none": "without BN", "before": "BN before"}
ESTIMATION_SAMPLES = 1024


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, weights of He's standard deviation, rate 0.1 at batches of 60.

    Its budget of 320 steps of 64 samples is 16 epochs.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    return relu_digits(data_dir, Budget(max_steps=320, eval_every=80))


def study(problem: Problem) -> Study:
    """Train at batch sizes from 2 to 512, plain and with batch norm, and evaluate by every kind of statistics.

    All arms see the same number of samples: where the budget says n steps, a batch size of b gets 64·n/b, evaluated as
    often. The learning rate is scaled with the batch size (Goyal et al. 2017, section 2.1): it is the module's own at
    the size that the data have by themselves. Small batches make a norm's statistics noisy (Ioffe 2017, section 1), and
    the running averages, the paper's estimate (Ioffe & Szegedy 2015, Algorithm 2) and others then differ: at the last
    step one and the same run is evaluated with each. A metric without a suffix is with running averages, as torch has
    them by default.

    Curves over steps are not comparable between these arms, as their steps differ in samples. A data set of fewer
    samples than a batch size is trained on whole, which a warning says, and left out of the figures. Data whose loader
    cannot be given another batch size fail with a message that says so.

    2 × 9 = 18 arms; on the digits 20,480 samples each: 2 s of one core a cell at batches of 64, 10 s over all sizes, 9
    minutes for 6 seeds on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"{norm}_b{size}",
            label=f"{words}, batch size {size}",
            factors={"norm": norm, "batch_size": size},
            callbacks=functools.partial(_callbacks, norm, size, problem.monitor),
            budget=budget_of(problem.budget, size),
        )
        for norm, words in NORMS.items()
        for size in SIZES
    )
    metric = problem.monitor.replace("_", " ")
    same = (
        f"All runs see the same number of samples ({problem.budget.max_steps * REFERENCE_SIZE:,}, but for rounding), "
        "and the learning rate is scaled in proportion to the batch size."
    )
    hollow = "A hollow marker leaves out runs that diverged."
    return Study(
        name="batch_size",
        question="How small may a batch be for batch norm, and which statistics suit small ones in evaluation?",
        source="Ioffe & Szegedy 2015, Algorithm 2; Ioffe 2017, section 1",
        problem=problem,
        reference=f"none_b{REFERENCE_SIZE}",
        arms=arms,
        figures=(
            Figure(
                name="metric",
                caption=f"{metric} at the last step by batch size, without batch norm and with it, evaluated with "
                f"running averages and with each estimate: mean over seeds with its 95 % t interval. {same} {hollow}",
                draw=_draw_metric,
            ),
            Figure(
                name="gain",
                caption=f"What recalibration changes in {metric} at the last step: with each estimate minus with "
                f"running averages, in one and the same run; mean over seeds with its 95 % t interval. {same} {hollow}",
                draw=_draw_gain,
            ),
        ),
    )


def budget_of(budget: Budget, size: int) -> Budget:
    """Steps of a batch size that see as many samples as the budget's steps of 64, evaluated as often.

    Args:
        budget: In steps of 64 samples.
        size: Batch size.

    Returns:
        Its steps; at least one between two evaluations.

    Example:
        >>> budget_of(Budget(max_steps=320, eval_every=80), 512).max_steps
        40
    """
    every = max(1, round(budget.eval_every * REFERENCE_SIZE / size))
    return Budget(max_steps=every * (budget.max_steps // budget.eval_every), eval_every=every, seeds=budget.seeds)


def by_statistics(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The metric at the last step by batch size and kind of statistics.

    Runs that could not have their size, because the data hold fewer samples, are left out.

    Args:
        results: The long table.
        study: The study.

    Returns:
        The columns arm, seed, norm, batch_size, statistics ("none" without batch norm, "running" or
        an estimator) and value.
    """
    plain = factor_table(results, study)
    tables = [plain.assign(statistics=plain["norm"].map({"none": "none"}).fillna(RUNNING))]
    for estimator in ESTIMATORS:
        quantity = f"{study.problem.monitor}_{estimator}"
        if (results["quantity"] == quantity).any():
            tables.append(factor_table(results, study, quantity=quantity).assign(statistics=estimator))
    table = pd.concat(tables, ignore_index=True)
    sizes = results[results["quantity"] == "batch_size"].set_index(["arm", "seed"])["value"]
    trained = [sizes.get((arm, seed), math.nan) for arm, seed in zip(table["arm"], table["seed"], strict=True)]
    return table[table["batch_size"] == trained].reset_index(drop=True)


def _callbacks(norm: str, size: int, monitor: str) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.batch_size import BatchSize
    from bn_lightning.analysis.estimator_metrics import EstimatorMetrics
    from bn_lightning.analysis.expected_warnings import ExpectedWarnings
    from bn_lightning.callbacks.insertion import BatchNormInsertion

    if norm == "none":
        return [BatchSize(size)]
    batches = -(-ESTIMATION_SAMPLES // size)
    # That two values are normalised to ±1 is what the smallest size shows.
    quiet = [ExpectedWarnings(".* received 2 values per channel")] if size == 2 else []
    return [
        *quiet,
        BatchNormInsertion(),
        BatchSize(size),
        EstimatorMetrics(monitor, num_batches=batches, only_at_end=True),
    ]


def _draw_metric(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    return plot_factor_lines(
        by_statistics(results, study),
        x="batch_size",
        line="statistics",
        lines={"none": "without BN", RUNNING: "BN, running averages", **ESTIMATORS},
        xlabel="batch size",
        ylabel=f"{study.problem.monitor.replace('_', ' ')} at the last step",
    )


def _draw_gain(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    table = by_statistics(results, study)
    running = table[table["statistics"] == RUNNING][["arm", "seed", "value"]]
    gains = table[table["statistics"].isin(list(ESTIMATORS))].merge(
        running, on=["arm", "seed"], suffixes=("", "_running")
    )
    return plot_factor_lines(
        gains.assign(value=gains["value"] - gains["value_running"]),
        x="batch_size",
        line="statistics",
        # All lines keep their places among the styles, so that colours agree with those of the other figure.
        lines={"none": "without BN", RUNNING: "BN, running averages", **ESTIMATORS},
        xlabel="batch size",
        ylabel=f"{study.problem.monitor.replace('_', ' ')}:\ndifference to running averages",
        zero=True,
    )
