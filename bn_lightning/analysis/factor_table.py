"""One row per run with its arm's factors, and whether it learned."""

import pandas as pd

from bn_lightning.analysis.study import Study
from bn_lightning.analysis.summary import final_metric
from bn_lightning.analysis.targets import has_reached, metric_curves

ON_TRAINING_SET = "training_set_"
"""What the name of a metric begins with where it is that of the training data, not of the validation loop's."""


def factor_table(results: pd.DataFrame, study: Study, *, quantity: str | None = None) -> pd.DataFrame:
    """One quantity of the whole model at the last step of every run, beside the factors of its arm.

    Args:
        results: The long table.
        study: The study; its arms hold the factors.
        quantity: The quantity; the study's metric by default. Runs that have none of it are left out.

    Returns:
        The columns arm, seed, one for every factor, and value; NaN for a run that diverged.

    Raises:
        ValueError: If the quantity was not recorded.
    """
    if quantity is None:
        table = final_metric(results, study).stack(future_stack=True)
        values = table.rename("value").reset_index()
    else:
        curves = metric_curves(results, quantity).sort_values("step")
        values = curves.drop_duplicates(["arm", "seed"], keep="last")[["arm", "seed", "value"]]
    ran = metric_curves(results, study.problem.monitor)[["arm", "seed"]].drop_duplicates()
    values = values.merge(ran, on=["arm", "seed"])
    factors = pd.DataFrame([{"arm": arm.name, **arm.factors} for arm in study.arms])
    # In the study's order, whatever order the cells finished in.
    return factors.merge(values, on="arm").reset_index(drop=True)


def learning_threshold(results: pd.DataFrame, study: Study) -> float:
    """The value of the metric from which on a run counts as one that learned.

    The problem's target where there is one, which was fixed before the runs. Else the middle between the median over
    all runs before training and the best of all runs at the end: a yardstick that is the same for all arms, and to be
    read with them.

    Args:
        results: The long table.
        study: The study.

    Returns:
        The value.
    """
    problem = study.problem
    if problem.target is not None:
        return problem.target
    curves = metric_curves(results, problem.monitor)
    start = float(curves.loc[curves["step"] == curves["step"].min(), "value"].median())
    final = final_metric(results, study).to_numpy().ravel()
    ends = pd.Series(final).dropna()
    best = ends.max() if problem.mode == "max" else ends.min()
    return float((start + best) / 2)


def learned(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Whether each run learned: 1 where its metric at the last step is at the threshold or better, else 0.

    Args:
        results: The long table.
        study: The study.

    Returns:
        As `factor_table`, with 0 or 1 as the value; a run that diverged did not learn.
    """
    table, threshold = factor_table(results, study), learning_threshold(results, study)
    passed = has_reached(table["value"], threshold, study.problem.mode)
    return table.assign(value=passed.astype(float))
