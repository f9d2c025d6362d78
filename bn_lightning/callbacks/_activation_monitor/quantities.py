"""What is said of one recorded tensor at one step: which numbers loggers get, and which only the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bn_lightning.callbacks._activation_monitor.history import PERCENTAGES
from bn_lightning.callbacks._activation_monitor.layout import is_gradient
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import dead_share, saturated_share
from bn_lightning.probes.recording import percentile_name


@dataclass(frozen=True)
class Quantities:
    """Numbers of one series at one step, by the name of the statistic.

    Attributes:
        logged: For loggers and the table.
        told: For the table only: a card a layer for each of these would bury the others.
        quantiles: At `PERCENTAGES`; empty where there is no distribution to draw.
    """

    logged: dict[str, float]
    told: dict[str, float]
    quantiles: tuple[float, ...] = ()


def quantities(series: Series, summary: ActivationSummary, percentiles: Sequence[float]) -> Quantities:
    """The numbers of one series at one step.

    Args:
        series: What was recorded.
        summary: Its statistics.
        percentiles: Percentages, ascending.

    Returns:
        Norm, mean and variance of a gradient; of all else mean, variance, percentiles, flatness and shape. Where
        nothing came by, NaN in the table and nothing for loggers; a non-finite count for loggers only where it is
        not 0.
    """
    nonfinite = {"nonfinite": float(summary.nonfinite)}
    numbers = {"mean": summary.mean, "var": summary.variance}
    told: dict[str, float] = {}
    quantiles: tuple[float, ...] = ()
    if is_gradient(series.kind):
        numbers = {"norm": _norm(summary)} | numbers
    else:
        # One call, since sorting the elements is what costs.
        found = summary.percentiles((*percentiles, *PERCENTAGES))
        numbers |= {percentile_name(percent): value for percent, value in zip(percentiles, found, strict=False)}
        numbers |= {name: value for name, value in flatness(series, summary).items() if not math.isnan(value)}
        told = _shape(summary)
        quantiles = tuple(found[len(percentiles) :]) if len(summary.values) else ()
    if not summary.count and not summary.nonfinite:
        return Quantities({}, numbers | told | nonfinite)
    if summary.nonfinite:
        return Quantities(numbers | nonfinite, told, quantiles)
    return Quantities(numbers, told | nonfinite, quantiles)


def flatness(series: Series, summary: ActivationSummary) -> dict[str, float]:
    """How much of a tensor lies where its nonlinearity is flat.

    Args:
        series: What was recorded.
        summary: Its statistics.

    Returns:
        "saturated" (share of elements), of pre-activations alone, and "dead" (share of channels); NaN where unknown,
        as of all that no nonlinearity reads or returns.
    """
    is_input = series.kind == "preactivation"
    return {
        "saturated": saturated_share(summary, series.op) if is_input else math.nan,
        "dead": dead_share(summary, series.op, returned=not is_input),
    }


def _norm(summary: ActivationSummary) -> float:
    """The root of the sum of squares of all elements, from the moments."""
    return math.sqrt(summary.count * (summary.variance + summary.mean**2)) if summary.count else math.nan


def _shape(summary: ActivationSummary) -> dict[str, float]:
    if not summary.count:
        return {}
    shape = {"skewness": summary.skewness, "kurtosis": summary.kurtosis}
    if summary.extremes is not None:
        shape |= {"min": float(summary.extremes[0].min()), "max": float(summary.extremes[1].max())}
    return shape
