"""Where a nonlinearity is flat: saturated elements and dead channels, by its own derivative.

An element is saturated where the derivative of the nonlinearity is below 5 % of its peak, so that hardly any gradient
passes; for a ReLU that is the negative half. A channel is dead where every element lies on one flat side.
"""

import math

from bn_lightning.functional.activations import ActivationSummary

_INF = math.inf
# sigma' = sigma(1 - sigma) has the peak 1/4: below 1/80 beyond the root of sigma(1 - sigma) = 1/80.
_SIGMOID = math.log((1 + math.sqrt(0.95)) / (1 - math.sqrt(0.95)))
# tanh' = 1 - tanh^2 has the peak 1.
_TANH = math.atanh(math.sqrt(0.95))
# The derivatives of softplus and logsigmoid are sigmoids with the peak 1.
_LOGIT = math.log(0.05 / 0.95)
# exp(x) for x < 0 with the unit scale that is the default.
_ELU = math.log(0.05)

STEEP: dict[str, tuple[float, float]] = {
    "relu": (0.0, _INF),
    "relu6": (0.0, 6.0),
    "sigmoid": (-_SIGMOID, _SIGMOID),
    "expit": (-_SIGMOID, _SIGMOID),
    "tanh": (-_TANH, _TANH),
    "hardsigmoid": (-3.0, 3.0),
    "hardtanh": (-1.0, 1.0),
    "elu": (_ELU, _INF),
    "softplus": (_LOGIT, _INF),
    "logsigmoid": (-_INF, -_LOGIT),
    "softsign": (1 - math.sqrt(20), math.sqrt(20) - 1),
    "erf": (-math.sqrt(math.log(20)), math.sqrt(math.log(20))),
}
"""Outside of which interval each nonlinearity, with its default arguments, has less than 5 % of its peak derivative.

Smooth rectifiers that dip below zero (GELU, SiLU, Mish) have no such interval and are left out.
"""


def is_two_sided(op: str) -> bool:
    """Whether a nonlinearity flattens on both sides, so that a large spread saturates it."""
    return all(map(math.isfinite, STEEP.get(op, (_INF, _INF))))


def saturated_share(summary: ActivationSummary, op: str) -> float:
    """The share of elements where the nonlinearity is flat.

    Args:
        summary: Of the pre-activation. From a sample of k elements the standard error is at most 1/(2√k).
        op: Name of the nonlinearity.

    Returns:
        Between 0 and 1; NaN for a nonlinearity that `STEEP` lacks, and where nothing was recorded.

    Example:
        >>> import torch
        >>> from bn_lightning.functional.summarise import summarise
        >>> x = torch.tensor([-5.0, 0.0, 1.0, 5.0])
        >>> summary = summarise(x, torch.zeros(4, dtype=torch.long), channels=1, elements=4)
        >>> saturated_share(summary, "sigmoid"), saturated_share(summary, "elu"), saturated_share(summary, "gelu")
        (0.5, 0.25, nan)
    """
    if op not in STEEP or not len(summary.values):
        return math.nan
    low, high = STEEP[op]
    # The bound itself belongs to the flat side: a ReLU passes no gradient at zero.
    flat = (summary.values <= low) | (summary.values >= high)
    return float(summary.weights[flat].sum() / summary.weights.sum())


def dead_share(summary: ActivationSummary, op: str) -> float:
    """The share of channels with every element on one flat side of the nonlinearity.

    Args:
        summary: Of the pre-activation, with its extremes: a sample cannot say *never*.
        op: Name of the nonlinearity.

    Returns:
        Between 0 and 1; NaN without extremes, for a nonlinearity that `STEEP` lacks, and where nothing was recorded.

    Example:
        >>> import torch
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> x = torch.tensor([[-1.0, -1.0], [-2.0, 3.0]])
        >>> dead_share(summarise_rows(x, torch.tensor([0, 1]), elements=4), "relu")
        0.5
    """
    if op not in STEEP or summary.extremes is None or not summary.count:
        return math.nan
    low, high = STEEP[op]
    minimum, maximum = summary.extremes
    met = summary.extremes.isfinite().all(0)
    dead = ((maximum <= low) | (minimum >= high)) & met
    return float(dead.sum() / met.sum())
