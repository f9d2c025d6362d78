"""Rows of the long results table that one figure draws, or an error naming what the table holds instead."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from bn_lightning.figure_text import plain_text

Arms = Mapping[str, str] | Sequence[str] | None


def near_names(asked: str, known: Iterable[str]) -> str:
    """Say which names there are, the ones most like `asked` first.

    Args:
        asked: The name that was not found.
        known: The names that exist.

    Returns:
        At most eight names, or "nothing".

    Example:
        >>> near_names("test_acuracy", ["train_loss", "test_accuracy"])
        "'test_accuracy', 'train_loss'"
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(asked, names, n=4, cutoff=0.4)
    listed = near + [name for name in names if name not in near]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(repr(name) for name in listed[:8]) + more if listed else "nothing"


def select_quantity(results: pd.DataFrame, quantity: str, *, layer: str = "") -> pd.DataFrame:
    """Take one quantity of one layer out of the results table.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        quantity: Name of the quantity.
        layer: Path of the layer; empty for the whole model.

    Returns:
        Its rows, ordered as they were.

    Raises:
        ValueError: If columns are missing, nothing of that name was recorded, or a cell has two values for a step.

    Example:
        >>> rows = [("none", 0, 50, "", "test_accuracy", 0.5), ("none", 0, 50, "", "train_loss", 1.2)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> select_quantity(table, "test_accuracy").value.tolist()
        [0.5]
    """
    require_columns(results)
    # An empty layer read back from a CSV file is a missing value.
    layers = results["layer"].fillna("").astype(str)
    rows = results[(layers == layer) & (results["quantity"] == quantity)]
    if rows.empty:
        of_layer = results.loc[layers == layer, "quantity"].astype(str)
        if layer and of_layer.empty:
            raise ValueError(
                f"No results of layer {layer!r}: the table holds results of {near_names(layer, set(layers) - {''})}."
            )
        where = f"layer {layer!r}" if layer else "the whole model"
        elsewhere = sorted(set(layers[results["quantity"] == quantity]))
        hint = f" It was recorded for the layers {near_names(layer, elsewhere)}: pass layer=." if elsewhere else ""
        raise ValueError(
            f"No results of quantity {quantity!r} for {where}: the table holds {near_names(quantity, of_layer)}.{hint}"
        )
    twice = rows.duplicated(["arm", "seed", "step"])
    if twice.any():
        first = rows[twice].iloc[0]
        raise ValueError(
            f"{quantity!r} has several values for arm {first['arm']!r}, seed {first['seed']}, step {first['step']}: "
            "the table mixes runs; draw one study's results at a time."
        )
    return rows


def arm_labels(rows: pd.DataFrame, arms: Arms) -> dict[str, str]:
    """Name the arms of a figure in their order, each with the words it is labelled with.

    Args:
        rows: Table with a column arm.
        arms: Names in order, or a mapping from name to label; None for all, in the order of the table.

    Returns:
        Name and label, as matplotlib takes it, of every arm, including those without rows: their places fix the others'
        colours.

    Raises:
        ValueError: If none of `arms` has rows.

    Example:
        >>> arm_labels(pd.DataFrame({"arm": ["none", "after"]}), {"after": "BN after", "none": "no norm"})
        {'after': 'BN after', 'none': 'no norm'}
    """
    present = list(dict.fromkeys(rows["arm"].astype(str)))
    named = arms if isinstance(arms, Mapping) else {arm: arm for arm in (present if arms is None else arms)}
    labels = {arm: plain_text(label) for arm, label in named.items()}
    if not set(labels) & set(present):
        asked = ", ".join(repr(arm) for arm in labels) or "no arm"
        raise ValueError(f"Asked to draw {asked}: the table holds the arms {near_names(asked, present)}.")
    return labels


def steps_by_seed(rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Lay one arm's rows out as steps × seeds; what is missing or infinite becomes NaN.

    Args:
        rows: What `select_quantity` returned.
        arm: Name of the arm.

    Returns:
        A float table with steps as its index, ascending, and seeds as its columns.

    Example:
        >>> rows = pd.DataFrame({"arm": "a", "seed": [0, 1, 0], "step": [5, 5, 0], "value": [0.5, float("inf"), 0.1]})
        >>> steps_by_seed(rows, "a")
        seed    0   1
        step
        0     0.1 NaN
        5     0.5 NaN
    """
    of_arm = rows[rows["arm"].astype(str) == arm]
    table = of_arm.pivot(index="step", columns="seed", values="value").sort_index().sort_index(axis="columns")
    table = table.astype(float)
    return table.where(table.abs() < float("inf"))


def require_columns(results: pd.DataFrame) -> None:
    """Check that a table is a results table.

    Args:
        results: The table.

    Raises:
        ValueError: If a column is missing.
    """
    needed = ("arm", "seed", "step", "layer", "quantity", "value")
    missing = [name for name in needed if name not in results.columns]
    if missing:
        raise ValueError(
            f"A results table with the columns {', '.join(needed)} was expected; this one lacks {', '.join(missing)} "
            f"and has {', '.join(map(str, results.columns)) or 'none'}."
        )
