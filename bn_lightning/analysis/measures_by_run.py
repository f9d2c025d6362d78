"""Boil each run's covariate shift and smoothness down to one number a measure, and align runs at their blow-up."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Measure:
    """A quantity of the monitors, and how a run's values of it become one.

    Args:
        name: What the boiled-down number is called.
        quantity: As the monitors record it.
        words: For figures.
        how: "median" over steps and layers, or "negative": the share of values below 0.
        log: Whether it is drawn on a logarithmic axis.
    """

    name: str
    quantity: str
    words: str
    how: Literal["median", "negative"] = "median"
    log: bool = True


MEASURES = (
    Measure("gradient_shift", "gradient_shift_relative", "gradient shift,\nrelative"),
    Measure("gradient_cosine", "gradient_shift_cosine", "cosine of gradient\nbefore and after", log=False),
    Measure("negative_cosines", "gradient_shift_cosine", "share of negative\ncosines", how="negative", log=False),
    Measure("activation_shift", "activation_shift_wasserstein_normalised", "activation shift,\nW1 over std"),
    Measure("effective_beta", "effective_beta", "effective β"),
    Measure("gradient_norm", "smoothness_gradient_norm", "gradient norm on\nthe probe set"),
)


def measures_by_run(results: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """One number a labelled run and measure, over the steps before the run blew up.

    Dead layers, whose shift is NaN and not 0, are left out of the medians, and so are values that are not finite;
    a measure of which nothing is left is NaN.

    Args:
        results: The long table.
        labels: What `label_cells` returned.

    Returns:
        The columns arm, seed, label, measure and value.
    """
    rows = []
    for cell in labels.itertuples():
        mine = results[(results["arm"] == cell.arm) & (results["seed"] == cell.seed)]
        before = mine if np.isnan(cell.blow_up) else mine[mine["step"] < cell.blow_up]
        for measure in MEASURES:
            values = before.loc[before["quantity"] == measure.quantity, "value"].to_numpy()
            values = values[np.isfinite(values)]
            value = np.nan
            if len(values):
                value = float((values < 0).mean() if measure.how == "negative" else np.median(values))
            rows.append((cell.arm, cell.seed, cell.label, measure.name, value))
    return pd.DataFrame(rows, columns=["arm", "seed", "label", "measure", "value"])


def aligned_at_blow_up(results: pd.DataFrame, labels: pd.DataFrame, *, window: int) -> pd.DataFrame:
    """The measures of the diverged runs by the number of steps that were left until they blew up.

    Args:
        results: The long table.
        labels: What `label_cells` returned.
        window: How many steps back to go.

    Returns:
        The columns arm, seed, steps_left (0 at the blow-up), measure and value, the median over layers.
    """
    tables = []
    for cell in labels[labels["label"] == "diverged"].itertuples():
        mine = results[(results["arm"] == cell.arm) & (results["seed"] == cell.seed)]
        mine = mine.assign(steps_left=cell.blow_up - mine["step"])
        mine = mine[mine["steps_left"].between(0, window)]
        for measure in MEASURES:
            if measure.how == "median":
                values = mine[mine["quantity"] == measure.quantity].groupby("steps_left")["value"].median()
                tables.append(values.reset_index().assign(arm=cell.arm, seed=cell.seed, measure=measure.name))
    columns = ["arm", "seed", "steps_left", "measure", "value"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
