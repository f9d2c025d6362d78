"""Where a nonlinearity is flat: saturated elements and dead channels, by its own derivative.

An element is saturated where the derivative of the nonlinearity is below 5 % of its peak, so that hardly any gradient
passes; for a ReLU that is the negative half. A channel is dead where every element lies on one flat side.
"""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

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
        >>> from bn_lightning.functional.summarise import summarise
        >>> x = torch.tensor([-5.0, 0.0, 1.0, 5.0])
        >>> summary = summarise(x, torch.zeros(4, dtype=torch.long), channels=1, elements=4)
        >>> saturated_share(summary, "sigmoid"), saturated_share(summary, "elu"), saturated_share(summary, "gelu")
        (0.5, 0.25, nan)
    """
    if op not in STEEP or not len(summary.values):
        return math.nan
    flat = _flat(summary, op)
    if summary.is_uniform:
        return int(np.count_nonzero(flat)) / len(flat)
    return float(summary.weights[flat].sum() / summary.weights.sum())


def channel_saturated_shares(summary: ActivationSummary, op: str) -> Float64[Tensor, " c"]:
    """The share of each channel's elements where the nonlinearity is flat.

    Args:
        summary: Of the pre-activation, with the channel of each element it keeps. From k elements of the channel the
            standard error is at most 1/(2√k).
        op: Name of the nonlinearity.

    Returns:
        Between 0 and 1, `[C]`; NaN for a nonlinearity that `STEEP` lacks, and where nothing of the channel was kept.

    Example:
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> x = torch.tensor([[-1.0, 1.0], [2.0, 3.0]])
        >>> channel_saturated_shares(summarise_rows(x, torch.arange(2), elements=4, keep_channels=True), "relu")
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    channels = len(summary.channel_nonfinite)
    if op not in STEEP or summary.channel is None or not len(summary.values):
        return torch.full((channels,), math.nan, dtype=torch.float64)
    flat = torch.where(_flat(summary, op), summary.weights, 0.0)
    within, total = (torch.bincount(summary.channel, part, minlength=channels) for part in (flat, summary.weights))
    return within / total


def dead_share(summary: ActivationSummary, op: str, *, returned: bool = False) -> float:
    """The share of channels with every element on one flat side of the nonlinearity.

    Args:
        summary: Of the pre-activation, with its extremes: a sample cannot say *never*.
        op: Name of the nonlinearity.
        returned: Whether the summary is of what the nonlinearity returns instead.

    Returns:
        Between 0 and 1; NaN without extremes, for a nonlinearity that `STEEP` lacks, and where nothing was recorded.

    Example:
        >>> from bn_lightning.functional.summarise import summarise_rows
        >>> x = torch.tensor([[-1.0, -1.0], [-2.0, 3.0]])
        >>> dead_share(summarise_rows(x, torch.tensor([0, 1]), elements=4), "relu")
        0.5
        >>> dead_share(summarise_rows(x.relu(), torch.tensor([0, 1]), elements=4), "relu", returned=True)
        0.5
    """
    if op not in STEEP or summary.extremes is None:
        return math.nan
    return float(dead_channels(summary, op, returned=returned).nanmean())


def dead_channels(summary: ActivationSummary, op: str, *, returned: bool = False) -> Float64[Tensor, " c"]:
    """Which channels have every element on one flat side of the nonlinearity.

    Args:
        summary: Of the pre-activation, with its extremes: a sample cannot say *never*.
        op: Name of the nonlinearity.
        returned: Whether the summary is of what the nonlinearity returns instead.

    Returns:
        1 where dead and 0 where not, `[C]`; NaN without extremes, for a nonlinearity that `STEEP` lacks, and for a
        channel without a finite element.
    """
    unknown = torch.full((len(summary.channel_nonfinite),), math.nan, dtype=torch.float64)
    if op not in STEEP or summary.extremes is None:
        return unknown
    low, high = _returned_at(op) if returned else STEEP[op]
    minimum, maximum = summary.extremes
    dead = (maximum <= low) | (minimum >= high)
    return torch.where(summary.extremes.isfinite().all(0), dead.double(), unknown)


def _flat(summary: ActivationSummary, op: str) -> Tensor:
    low, high = STEEP[op]
    # The bound itself belongs to the flat side: a ReLU passes no gradient at zero.
    # In NumPy, where an operation on some thousand numbers costs a tenth of torch's.
    values = summary.values.numpy()
    return torch.from_numpy((values <= low) | (values >= high))


@cache
def _returned_at(op: str) -> tuple[float, float]:
    """What the nonlinearity returns at the bounds of its steep interval; it is monotone."""
    function = getattr(torch.special, op, None) or getattr(torch.nn.functional, op)
    found = []
    for bound in STEEP[op]:
        # In float32, as nearly all activations are: a half-precision one is on the bound only where it is exact.
        found.append(float(function(torch.tensor(bound))) if math.isfinite(bound) else bound)
    return found[0], found[1]
