"""What do recalibrated statistics gain over running averages, during a training and after it?"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.plots.factor_lines import plot_factor_lines
from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

MOMENTA = (0.1, 0.01, 0.001)
"""Weight of a new batch in the running average; torch's convention and default."""
RUNNING = "running"
ESTIMATORS = {
    "pooled": "pooled",
    "paper": "the paper's",
    "fixed_point": "fixed point",
    "ema": "ema",
    "last_batches": "last batches",
}
LAGS = {
    "running_mean_lag": "mean: √(mean over channels of (Δμ/σ_running)²)",
    "running_variance_lag": "variance: |mean over channels of ln(σ²_pooled/σ²_running)|",
}
ESTIMATION_BATCHES = 50


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network of the paper's first experiment for 500 steps, evaluated every 100.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    problem = digits_problem(data_dir=data_dir)
    return dataclasses.replace(problem, budget=Budget(max_steps=500, eval_every=100), target=None)


def study(problem: Problem) -> Study:
    """Evaluate one training by running averages and by every estimator, at momenta of 0.1, 0.01 and 0.001.

    Ioffe & Szegedy (2015), Algorithm 2, take population statistics over batches after training, and section 3.1 has
    moving averages track the accuracy of a model as it trains. A small momentum averages over more batches, whose
    weights are older: how far the averages lag is measured against pooled statistics of training batches under the
    weights of the moment. Momentum does not enter training, so the three arms of a seed have the same weights: they
    differ in nothing but the running averages, and in "ema", which goes on from them. Norms stand before the
    nonlinearities. A metric without a suffix is with running averages.

    3 arms, of 500 steps on the digits, with 5 evaluations by 6 kinds of statistics: 4 s of one core a cell, under a
    minute for 6 seeds on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"m{momentum:g}",
            label=f"momentum {momentum:g}",
            factors={"momentum": momentum},
            callbacks=functools.partial(_callbacks, momentum, problem.monitor),
        )
        for momentum in MOMENTA
    )
    metric = problem.monitor.replace("_", " ")
    interval = "mean over seeds with its 95 % t interval. A hollow marker leaves out runs that diverged."
    return Study(
        name="recalibration",
        question="What do recalibrated statistics gain over running averages, during a training and after it?",
        source="Ioffe & Szegedy 2015, Algorithm 2 and section 3.1",
        problem=problem,
        reference=f"m{MOMENTA[0]:g}",
        arms=arms,
        figures=(
            Figure(
                name="metric",
                caption=f"{metric} of one training over optimizer steps, evaluated with running averages and with each "
                f"estimate: {interval}",
                draw=_draw_metric,
            ),
            Figure(
                name="gain",
                caption=f"{metric} with each estimate minus with running averages, in one and the same run; "
                f"each momentum has its own scale: {interval}",
                draw=_draw_gain,
            ),
            Figure(
                name="lag",
                caption="How far the running averages are from the pooled statistics under the weights of the moment, "
                f"median over norms: {interval}",
                draw=_draw_lag,
            ),
        ),
    )


def _callbacks(momentum: float, monitor: str) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.estimator_metrics import EstimatorMetrics
    from bn_lightning.callbacks.insertion import BatchNormInsertion

    insertion = BatchNormInsertion(norm_options={"momentum": momentum})
    return [insertion, EstimatorMetrics(monitor, num_batches=ESTIMATION_BATCHES)]


def by_statistics(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The metric by arm, step and kind of statistics; step 0 is left out, as nothing has been averaged then.

    Args:
        results: The long table.
        study: The study.

    Returns:
        The columns arm, seed, step, statistics ("running" or an estimator) and value.
    """
    metric = study.problem.monitor
    names = {metric: RUNNING, **{f"{metric}_{estimator}": estimator for estimator in ESTIMATORS}}
    rows = results[results["quantity"].isin(list(names)) & (results["layer"] == "") & (results["step"] > 0)]
    return rows.assign(statistics=rows["quantity"].map(names))[["arm", "seed", "step", "statistics", "value"]]


def _draw(table: pd.DataFrame, study: Study, ylabel: str, *, lines: dict[str, str], **options: Any) -> MatplotlibFigure:
    titles = {arm.name: arm.label for arm in study.arms}
    return plot_factor_lines(
        table, x="step", panel="arm", panels=titles, lines=lines, xlabel="optimizer step", ylabel=ylabel, **options
    )


_LINES = {RUNNING: "running averages", **ESTIMATORS}


def _draw_metric(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    metric = study.problem.monitor.replace("_", " ")
    return _draw(by_statistics(results, study), study, metric, line="statistics", lines=_LINES)


def _draw_gain(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    table = by_statistics(results, study)
    keys = ["arm", "seed", "step"]
    running = table[table["statistics"] == RUNNING][[*keys, "value"]]
    gains = table[table["statistics"] != RUNNING].merge(running, on=keys, suffixes=("", "_running"))
    gains = gains.assign(value=gains["value"] - gains["value_running"])
    ylabel = f"{study.problem.monitor.replace('_', ' ')}:\ndifference to running averages"
    # All lines keep their places among the styles, so that colours agree with those of the other figure.
    return _draw(gains, study, ylabel, line="statistics", lines=_LINES, zero=True, share_y=False)


def _draw_lag(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    rows = results[results["quantity"].isin(list(LAGS))]
    lags = rows.assign(value=rows["value"].abs()).groupby(["arm", "seed", "step", "quantity"])["value"].median()
    return _draw(lags.reset_index(), study, "lag of the running averages", line="quantity", lines=LAGS, log_y=True)
