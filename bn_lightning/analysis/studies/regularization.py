"""How much dropout and weight decay does a network with batch norm still need?"""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from bn_lightning.analysis.factor_table import ON_TRAINING_SET, factor_table
from bn_lightning.analysis.plots.factor_lines import plot_factor_lines
from bn_lightning.analysis.studies._relu_digits import relu_digits
from bn_lightning.analysis.study import Arm, Budget, Figure, Problem, Study

DROPOUTS = (0.0, 0.2, 0.5)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
NORMS = {"none": "without BN", "before": "BN before"}
RECALIBRATION_BATCHES = 50


def default_problem(data_dir: str | Path | None = None) -> Problem:
    """The digits network with ReLUs, weights of He's standard deviation and rate 0.1, for 1,000 steps.

    Args:
        data_dir: Folder with MNIST, in place of the embedded digits.

    Returns:
        The problem.
    """
    return relu_digits(data_dir, Budget(max_steps=1000, eval_every=250))


def study(problem: Problem) -> Study:
    """Cross dropout with weight decay, without batch norm and with it, and measure the gap to the training data.

    Ioffe & Szegedy (2015), section 4.2.1, remove dropout from Inception and divide its L2 penalty by 5, as batch norm
    regularises by itself; the whole recipe trains to 72.7 % at the same rate, against 72.2 % without batch norm
    (their table of figure 3). ducha-aiki/caffenet-benchmark, one run each: with batch norm behind the nonlinearity and
    dropout 0.5, 0.2 and 0 .499, .527 and .513; without batch norm and 0.5, 0.2 and 0.1 .471, .494 and .473.

    The model's own dropout modules get the probability; a model without any gets them behind its nonlinearities
    (`SetDropout`). Weight decay is set in all parameter groups, those of scales and shifts too. Norms stand before the
    nonlinearities, and population statistics are taken anew before every evaluation. The metric is taken of the
    training data too, in evaluation mode.

    2 × 3 × 4 = 24 arms, of 1,000 steps on the digits: 7 s of one core a cell, 8 minutes for 6 seeds on two.

    Args:
        problem: What to train; its model holds no norms.

    Returns:
        The study.
    """
    arms = tuple(
        Arm(
            name=f"{norm}_p{dropout:g}_l{decay:g}",
            label=f"{words}, dropout {dropout:g}, weight decay {decay:g}",
            factors={"norm": norm, "dropout": dropout, "weight_decay": decay},
            callbacks=functools.partial(_callbacks, norm, dropout, decay),
        )
        for norm, words in NORMS.items()
        for dropout in DROPOUTS
        for decay in DECAYS
    )
    metric = problem.monitor.replace("_", " ")
    hollow = "A hollow marker leaves out runs that diverged."
    return Study(
        name="regularization",
        question="How much dropout and weight decay does a network with batch norm still need?",
        source="Ioffe & Szegedy 2015, section 4.2.1",
        problem=problem,
        reference="none_p0_l0",
        arms=arms,
        figures=(
            Figure(
                name="metric",
                caption=f"{metric} at the last step by dropout and weight decay: mean over seeds with its 95 % t "
                f"interval. {hollow}",
                draw=_draw_metric,
            ),
            Figure(
                name="gap",
                caption=f"{metric} of the training data minus that of the validation loop's, both at the last step and "
                f"in evaluation mode: mean over seeds with its 95 % t interval. {hollow}",
                draw=_draw_gap,
            ),
        ),
    )


def _callbacks(norm: str, dropout: float, decay: float) -> list[Any]:
    # Imported late: Lightning takes seconds to load, and naming a study must not.
    from bn_lightning.analysis.model_changes.dropout import SetDropout
    from bn_lightning.analysis.training_set_metric import TrainingSetMetric
    from bn_lightning.analysis.weight_decay import WeightDecay
    from bn_lightning.callbacks.insertion import BatchNormInsertion
    from bn_lightning.callbacks.recalibration import BatchNormRecalibration

    changes = [SetDropout(dropout), WeightDecay(decay)]
    if norm == "none":
        return [*changes, TrainingSetMetric()]
    norms = [BatchNormInsertion(), BatchNormRecalibration(num_batches=RECALIBRATION_BATCHES)]
    return [*changes, *norms, TrainingSetMetric()]


def gaps(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The metric of the training data minus that of the validation loop's, at the last step.

    Args:
        results: The long table.
        study: The study.

    Returns:
        The columns arm, seed, norm, dropout, weight_decay and value; NaN for a run that diverged.
    """
    ours = factor_table(results, study)
    theirs = factor_table(results, study, quantity=ON_TRAINING_SET + study.problem.monitor)
    both = ours.merge(theirs[["arm", "seed", "value"]], on=["arm", "seed"], suffixes=("", "_training"))
    return both.assign(value=both["value_training"] - both["value"]).drop(columns="value_training")


def _draw(table: pd.DataFrame, ylabel: str, *, zero: bool = False) -> MatplotlibFigure:
    return plot_factor_lines(
        table.assign(dropout=table["dropout"].map("{:g}".format)),
        x="weight_decay",
        line="dropout",
        lines={f"{p:g}": f"dropout {p:g}" for p in DROPOUTS},
        panel="norm",
        panels=NORMS,
        xlabel="weight decay λ",
        ylabel=ylabel,
        zero=zero,
    )


def _draw_metric(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    return _draw(factor_table(results, study), f"{study.problem.monitor.replace('_', ' ')} at the last step")


def _draw_gap(results: pd.DataFrame, cells: pd.DataFrame, study: Study) -> MatplotlibFigure:
    metric = study.problem.monitor.replace("_", " ")
    return _draw(gaps(results, study), f"{metric}:\ntraining data minus held out", zero=True)
