"""An ensemble and its members on the terminal."""

import pandas as pd

from bn_lightning.analysis.console import as_table, show
from bn_lightning.analysis.ensemble_checkpoints import Ensemble
from bn_lightning.analysis.statistics import mean_interval


def show_ensemble(ensemble: Ensemble) -> None:
    """Print the errors of each member and of the ensemble.

    Args:
        ensemble: What `ensemble_checkpoints` found.
    """
    samples, classes = ensemble.probabilities.shape
    views = f"{ensemble.views} view{'s' * (ensemble.views != 1)} of each"
    show(as_table(errors_by_member(ensemble.table), f"{samples:,} samples, {classes} classes, {views}"))


def summary_of(table: pd.DataFrame, *, classes: int) -> list[str]:
    """The mean error of the members, with its interval over them, beside that of the ensemble.

    Args:
        table: The long table of `ensemble_checkpoints`.
        classes: How many the members tell apart.

    Returns:
        One line a quantity, and one that says so where there is no top-5 error.

    Example:
        >>> rows = pd.DataFrame(
        ...     {"arm": ["a", "b", "ensemble"], "quantity": "top_1_error", "value": [0.10, 0.12, 0.09]}
        ... )
        >>> for line in summary_of(rows, classes=3):
        ...     print(line)
        top 1 error: members 0.1100 [-0.0171, 0.2371] (mean and 95 % t interval of 2), ensemble 0.0900
        There is no top-5 error: of 3 classes none is ever outside the first five.
    """
    lines = []
    for quantity, rows in table.groupby("quantity", sort=False):
        together = rows.loc[rows["arm"] == "ensemble", "value"].iloc[0]
        alone = mean_interval(rows.loc[rows["arm"] != "ensemble", "value"].to_numpy())
        found = f"members {alone.mean:.4f}"
        if alone.n > 1:
            found += f" [{alone.low:.4f}, {alone.high:.4f}] (mean and 95 % {alone.method} interval of {alone.n})"
        lines.append(f"{str(quantity).replace('_', ' ')}: {found}, ensemble {together:.4f}")
    if classes <= 5:
        lines.append(f"There is no top-5 error: of {classes} classes none is ever outside the first five.")
    return lines


def errors_by_member(table: pd.DataFrame) -> pd.DataFrame:
    """Errors, one row a member and one for the ensemble, one column a quantity.

    Args:
        table: The long table of `ensemble_checkpoints`.

    Returns:
        A table with the columns member, step and the quantities, in words.

    Example:
        >>> names = ["top_1_error", "top_5_error"]
        >>> rows = pd.DataFrame({"arm": "a", "step": 9, "quantity": names, "value": [0.5, 0.1]})
        >>> errors_by_member(rows).to_dict("records")
        [{'member': 'a', 'step': 9, 'top 1 error': 0.5, 'top 5 error': 0.1}]
    """
    wide = table.pivot(index="arm", columns="quantity", values="value")
    wide = wide.loc[list(dict.fromkeys(table["arm"])), list(dict.fromkeys(table["quantity"]))]
    steps = table.drop_duplicates("arm").set_index("arm")["step"]
    wide.columns = pd.Index([str(name).replace("_", " ") for name in wide.columns])
    wide.insert(0, "step", steps)
    return wide.rename_axis("member").reset_index()
