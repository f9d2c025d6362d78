"""Tables of a comparison as a run folder holds them, made up but shaped like real training."""

import json
import zlib

import numpy as np
import pandas as pd

ARMS = {"none": "no norm", "before": "BN before", "after": "BN after"}
COLUMNS = ["study", "arm", "seed", "step", "layer", "quantity", "value"]


def made_up_results(
    *,
    seeds: int = 6,
    max_steps: int = 1500,
    every: int = 50,
    unit: int = 12,
    diverged: tuple[tuple[str, int], ...] = (),
) -> pd.DataFrame:
    """Accuracy and percentiles of one unit, three arms; a diverged (arm, seed) turns to NaN at two thirds."""
    rows = []
    for arm, (speed, top, drift) in {
        "none": (1 / 520, 0.952, 2.5), "before": (1 / 45, 0.972, 0.35), "after": (1 / 30, 0.978, 0.9)
    }.items():  # fmt: skip
        for seed in range(seeds):
            draw = np.random.default_rng([seed, len(arm)])
            pace, sign = speed * draw.lognormal(0, 0.12), draw.choice([-1, 1])
            for step in range(0, max_steps + 1, every):
                alive = step < max_steps * 2 / 3 or (arm, seed) not in diverged
                shape = 1 - np.exp(-((step * pace) ** 1.3))
                accuracy = 0.1 + (top - 0.1) * shape + draw.normal(0, 0.004)
                rows.append(("placement", arm, seed, step, "", "test_accuracy", accuracy if alive else np.nan))
                middle = sign * drift * (1 - np.exp(-step / 400)) + 0.1 * drift * draw.normal()
                for percentile, z in ((15, -1.04), (50, 0.0), (85, 1.04)):
                    value = middle + z * (0.3 + 0.8 * shape) if alive else np.nan
                    rows.append(
                        ("placement", arm, seed, step, "net.4", f"preactivation_unit{unit}_p{percentile}", value)
                    )
    return pd.DataFrame(rows, columns=COLUMNS)


def made_up_cells(results: pd.DataFrame) -> pd.DataFrame:
    """A finished cell for every arm and seed; those with NaN are labelled diverged."""
    rows = []
    for (arm, seed), cell in results.groupby(["arm", "seed"], sort=False):
        label = "diverged" if cell["value"].isna().any() else "converged"
        factors = json.dumps({"placement": arm})
        rows.append(
            ("placement", arm, seed, factors, label, "done", 3.5 + 0.1 * seed, f"{zlib.crc32(arm.encode()):016x}")
        )
    columns = ["study", "arm", "seed", "factors", "label", "status", "seconds", "configuration_hash"]
    return pd.DataFrame(rows, columns=columns)


def made_up_times(results: pd.DataFrame, target: float) -> pd.DataFrame:
    """First step at which each cell's accuracy is at least the target, by a plain loop."""
    rows = []
    accuracy = results[results["quantity"] == "test_accuracy"]
    for (arm, seed), cell in accuracy.groupby(["arm", "seed"], sort=False):
        reached = [step for step, value in zip(cell["step"], cell["value"], strict=True) if value >= target]
        rows.append((arm, seed, reached[0] if reached else cell["step"].max(), not reached))
    return pd.DataFrame(rows, columns=["arm", "seed", "steps", "censored"])
