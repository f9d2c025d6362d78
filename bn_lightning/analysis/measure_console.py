"""What was measured of a checkpoint, on the terminal."""

import re

import pandas as pd

from bn_lightning.analysis.console import as_table, show


def show_measurements(table: pd.DataFrame) -> None:
    """Print numbers of the model, modes of norms side by side, then those of layers.

    Args:
        table: Numbers in the long format, of one checkpoint.
    """
    whole = table[table["layer"] == ""]
    if len(whole):
        show(as_table(by_mode(whole), f"{whole['arm'].iloc[0]}, step {whole['step'].iloc[0]}"))
    layers = table[table["layer"] != ""]
    for prefix, title in (
        ("gradient_", "Gradients: from this checkpoint to the other"),
        ("activation_", "Pre-activations: from this checkpoint to the other"),
    ):
        rows = layers[layers["quantity"].str.startswith(prefix)]
        if len(rows):
            show(as_table(by_layer(rows), title))


def by_mode(whole: pd.DataFrame) -> pd.DataFrame:
    """Numbers of the model, one row a quantity, with a column for each mode of the norms.

    Args:
        whole: Rows of the long table.

    Returns:
        A table with the columns quantity, train and, if there are any, eval; a quantity that is measured in the modes
        of training has its value under train.

    Example:
        >>> rows = pd.DataFrame({"quantity": ["loss_train", "loss_eval", "effective_beta"], "value": [1.0, 2.0, 3.0]})
        >>> by_mode(rows).to_dict("list")
        {'quantity': ['loss', 'effective beta'], 'train': [1.0, 3.0], 'eval': [2.0, nan]}
    """
    found: dict[str, dict[str, float]] = {}
    for quantity, value in zip(whole["quantity"], whole["value"], strict=True):
        name = re.sub(r"_(train|eval)$", "", quantity)
        mode = "eval" if quantity.endswith("_eval") else "train"
        found.setdefault(name.replace("_", " "), {})[mode] = value
    columns = ["train", "eval"] if any("eval" in modes for modes in found.values()) else ["train"]
    values = {mode: [modes.get(mode, float("nan")) for modes in found.values()] for mode in columns}
    return pd.DataFrame({"quantity": list(found), **values})


def by_layer(layers: pd.DataFrame) -> pd.DataFrame:
    """Numbers of layers, one row a layer in their order, one column a quantity.

    Args:
        layers: Rows of the long table, whose quantities share their first two words.

    Returns:
        A table with the column layer and the quantities, without their first two words.

    Example:
        >>> names = ["gradient_shift", "gradient_shift_cosine"]
        >>> rows = pd.DataFrame({"layer": "a", "quantity": names, "value": [1, 2]})
        >>> by_layer(rows).columns.tolist()
        ['layer', 'gradient shift', 'cosine']
    """
    wide = layers.pivot(index="layer", columns="quantity", values="value")
    wide = wide.loc[list(dict.fromkeys(layers["layer"])), list(dict.fromkeys(layers["quantity"]))]
    wide.columns = pd.Index([_words(name) for name in wide.columns])
    return wide.reset_index()


def _words(quantity: str) -> str:
    parts = quantity.split("_")
    return " ".join(parts[2:] if len(parts) > 2 else parts)
