"""How far the percentiles of what one unit's nonlinearity receives wander while a network trains."""

import pandas as pd

from bn_lightning.analysis.names import unknown_name


def percentile_drift(results: pd.DataFrame, *, layer: str, prefix: str = "preactivation") -> pd.DataFrame:
    r"""Put numbers on Figure 1 (b, c): how much each percentile of the followed units moves.

    For the percentile $q_t$ at the recorded steps $t$, *range* is $\max_t q_t - \min_t q_t$ and *path* is
    $\sum_t |q_{t+1} - q_t|$, both in the unit of the pre-activation. Since a unit with large pre-activations moves far
    without that mattering, each is also given divided by the mean over steps of the distance between the outermost
    percentiles. The path grows with the number of recorded steps: compare arms recorded alike.

    Source: Ioffe & Szegedy 2015, section 4.1 and figure 1 (b, c), which show this without a number.

    Args:
        results: The long table; of `layer` it holds `<prefix>_unit<unit>_p<percentile>`.
        layer: Path of the layer.
        prefix: What the quantities' names begin with.

    Returns:
        One row per arm, seed, unit and percentile with the columns range, path, relative_range and relative_path; NaN
        where a run diverged.

    Raises:
        UnknownNameError: If no unit of the layer was followed.

    Example:
        >>> values = {15: (-1.0, -2.0), 85: (1.0, 2.0)}
        >>> rows = [(step, f"preactivation_unit7_p{p}", v[step]) for p, v in values.items() for step in (0, 1)]
        >>> table = pd.DataFrame(rows, columns=["step", "quantity", "value"])
        >>> table = table.assign(arm="none", seed=0, layer="net.4")
        >>> percentile_drift(table, layer="net.4")[["percentile", "range", "relative_range"]].values.tolist()
        [[15.0, 1.0, 0.333...], [85.0, 1.0, 0.333...]]
    """
    parts = results["quantity"].astype(str).str.extract(rf"^{prefix}_unit(\d+)_p([\d.]+)$")
    of_units = parts[0].notna().to_numpy()
    chosen = of_units & (results["layer"] == layer).to_numpy()
    if not chosen.any():
        raise unknown_name("layer with a followed unit", layer, set(results.loc[of_units, "layer"].astype(str)))
    named = results[chosen].assign(
        unit=parts.loc[chosen, 0].astype(int).to_numpy(), percentile=parts.loc[chosen, 1].astype(float).to_numpy()
    )
    rows = []
    for (arm, seed, unit), of_unit in named.groupby(["arm", "seed", "unit"], sort=False):
        curves = of_unit.pivot(index="step", columns="percentile", values="value").sort_index().sort_index(axis=1)
        spread = float((curves.iloc[:, -1] - curves.iloc[:, 0]).mean(skipna=False))
        ranges = curves.max(skipna=False) - curves.min(skipna=False)
        paths = curves.diff().iloc[1:].abs().sum(skipna=False)
        for percentile in curves.columns:
            moved = float(ranges[percentile]), float(paths[percentile])
            rows.append((arm, seed, unit, percentile, *moved, *(size / spread for size in moved)))
    columns = ["arm", "seed", "unit", "percentile", "range", "path", "relative_range", "relative_path"]
    return pd.DataFrame(rows, columns=columns)
