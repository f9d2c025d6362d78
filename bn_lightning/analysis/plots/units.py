"""Single units that a run followed: which ones the results table holds, and their rows."""

import re

import pandas as pd

from bn_lightning.analysis.plots.selection import near_names, require_columns


def followed_units(
    results: pd.DataFrame, layer: str, *, prefix: str
) -> tuple[pd.DataFrame, dict[tuple[str, int], int]]:
    """Take the rows of one followed unit per cell, renamed as if they were the layer's.

    Which unit is typical depends on a cell's initial weights, so cells may follow different units; of several units in
    one cell the lowest is taken.

    Args:
        results: Long table with the columns arm, seed, step, layer, quantity and value.
        layer: Path of the layer.
        prefix: What the quantities' names begin with: `<prefix>_unit<unit>_<rest>` becomes `<prefix>_<rest>`.

    Returns:
        The rows, and the unit of every (arm, seed).

    Raises:
        ValueError: If no unit of the layer was followed.

    Example:
        >>> rows = [("none", 0, 0, "net.4", "preactivation_unit12_p50", 0.25)]
        >>> table = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])
        >>> rows, units = followed_units(table, "net.4", prefix="preactivation")
        >>> rows.quantity.tolist(), units
        (['preactivation_p50'], {('none', 0): 12})
    """
    require_columns(results)
    of_layer = results[results["layer"] == layer].reset_index(drop=True)
    parts = of_layer["quantity"].astype(str).str.extract(rf"^{re.escape(prefix)}_unit(\d+)_(.+)$").dropna()
    if parts.empty:
        known = near_names(f"{prefix}_unit", of_layer["quantity"].astype(str))
        raise ValueError(
            f"No single unit of layer {layer!r} was followed: of this layer the table holds {known}. "
            "Name units= in the monitor that records them, or draw the whole layer with unit=None."
        )
    rows = of_layer.loc[parts.index].assign(quantity=prefix + "_" + parts[1], unit=parts[0].astype(int))
    lowest = rows.groupby(["arm", "seed"], sort=False)["unit"].transform("min")
    rows = rows[rows["unit"] == lowest]
    cells = rows.drop_duplicates(["arm", "seed"])
    units = {(str(c.arm), int(c.seed)): int(c.unit) for c in cells.itertuples()}
    return rows.drop(columns="unit"), units
