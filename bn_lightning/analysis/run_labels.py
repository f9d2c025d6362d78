"""Say how a run ended: converged, oscillating, stuck or diverged, by rules that are written down."""

import math
import warnings
from typing import Literal, get_args

import numpy as np
import pandas as pd

from bn_lightning.errors import NoEffectWarning

STEP_LOSS = "step_loss"
"""The quantity that labels are read from: the training loss of every optimizer step."""

Label = Literal["converged", "oscillating", "stuck", "diverged"]
LABELS: tuple[Label, ...] = get_args(Label)

BLOWN_UP = 2.0
"""Of the loss at step 0: above it at the end, a run has diverged."""
SPREAD = 0.25
"""Of the loss at step 0: where the middle 80 % of the last quarter's losses are wider, a run oscillates."""
UNLEARNED = 0.9
"""Of the loss at step 0: above it at the end, and calm, a run is stuck."""
_LAST = 0.25


def label_run(losses: "np.ndarray | list[float]") -> Label:
    """Label one run by its training losses, one an optimizer step.

    With ℓ₀ the loss of the first step, at the initial weights, and the last quarter of the steps, in this order:

    - *diverged*: a loss is not finite, or the median of the last quarter is above 2 ℓ₀;
    - *oscillating*: the 10th and the 90th percentile of the last quarter lie more than ℓ₀ / 4 apart;
    - *stuck*: the median of the last quarter is above 0.9 ℓ₀;
    - *converged*: none of these: the loss fell and stays calm, whether or not it is done falling.

    Args:
        losses: Training losses of the steps 0, 1, …; a run that was stopped because its weights were no longer finite
            ends in NaN.

    Returns:
        The label.

    Raises:
        ValueError: If all losses are finite, and there are fewer than 4 or ℓ₀ is not above 0, as of a log-density: the
            rules are multiples of it.

    Example:
        >>> label_run([2.3, 1.0, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3]), label_run([2.3] * 8), label_run([2.3] * 7 + [1e9])
        ('converged', 'stuck', 'diverged')
    """
    values = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(values).all():
        return "diverged"
    if len(values) < 4:
        raise ValueError(f"A run is labelled by the last quarter of 4 or more training losses, got {len(values)}.")
    _check_first(values)
    last = values[-math.ceil(len(values) * _LAST) :]
    if np.median(last) > BLOWN_UP * values[0]:
        return "diverged"
    low, high = np.percentile(last, (10, 90))
    if high - low > SPREAD * values[0]:
        return "oscillating"
    return "stuck" if np.median(last) > UNLEARNED * values[0] else "converged"


def blow_up_step(losses: "np.ndarray | list[float]") -> int | None:
    """The first step from which on the loss never comes back below 2 ℓ₀.

    Args:
        losses: Training losses of the steps 0, 1, ….

    Returns:
        The step; None for a run that ends below.

    Raises:
        ValueError: If ℓ₀ is not above 0.

    Example:
        >>> blow_up_step([2.0, 9.0, 1.0, 5.0, float("nan")]), blow_up_step([2.0, 9.0, 1.0])
        (3, None)
    """
    values = np.asarray(losses, dtype=np.float64)
    _check_first(values)
    # NaN compares false: it counts as above.
    below = np.flatnonzero(values <= BLOWN_UP * values[0])
    first = int(below[-1]) + 1 if len(below) else 0
    return first if first < len(values) else None


def _check_first(values: "np.ndarray") -> None:
    # NaN passes: a run that begins with it is diverged.
    if values[0] <= 0:
        raise ValueError(
            f"Runs are labelled by multiples of the loss of step 0, which must be above 0, got {values[0]:g}."
        )


def label_cells(results: pd.DataFrame) -> pd.DataFrame:
    """Label every cell of a study that recorded the loss of each step.

    Cells whose loss at step 0 is not above 0 have no label: they are left out, and a `NoEffectWarning` names them.

    Args:
        results: The long table, with the quantity `step_loss`.

    Returns:
        One row per labelled cell: arm, seed, label and blow_up (the step, NaN where there is none).

    Raises:
        ValueError: If no losses were recorded, or no cell can be labelled.
    """
    losses = results[results["quantity"] == STEP_LOSS].sort_values("step")
    if losses.empty:
        raise ValueError(f"The results hold no {STEP_LOSS!r}, by which runs are labelled; run the study divergence.")
    rows, left_out = [], []
    for (arm, seed), cell in losses.groupby(["arm", "seed"], sort=False):
        values = cell["value"].to_numpy()
        if values[0] <= 0:
            left_out.append(f"{arm}/{seed}")
            continue
        blow_up = blow_up_step(values)
        rows.append((arm, seed, label_run(values), math.nan if blow_up is None else float(blow_up)))
    if left_out:
        text = (
            f"{len(left_out)} of {len(left_out) + len(rows)} runs have no label, their loss at step 0 not being above 0"
            f" ({', '.join(left_out[:5])}{', …' * (len(left_out) > 5)}); labels are by multiples of it."
        )
        if not rows:
            raise ValueError(text)
        warnings.warn(text, NoEffectWarning, stacklevel=2)
    return pd.DataFrame(rows, columns=["arm", "seed", "label", "blow_up"])
