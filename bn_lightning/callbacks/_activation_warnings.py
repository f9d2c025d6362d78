"""Say what is wrong with a network's pre-activations, once a layer, with the evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import median

from bn_lightning.callbacks._activation_series import Series
from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.errors import StatisticsWarning
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import dead_share, is_two_sided, saturated_share

# How many recorded steps in a row must agree: a single batch may be odd.
IN_A_ROW = 3
DEAD = 0.25
SATURATED = 0.5
# Of the standard deviation between the first and the last layer; 100 is far outside of what depth alone does to
# networks that train.
SPREAD = 100.0
_LEAST_LAYERS = 4


class ActivationWarnings:
    """Looks at the statistics of each recorded step and warns.

    Args:
        series: What is recorded.
    """

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = tuple(series)
        self._told: set[tuple[str, str, str]] = set()
        self._streaks: Counter[tuple[str, str, str]] = Counter()

    def check(self, step: int, summaries: Sequence[ActivationSummary]) -> None:
        """Warn of what is new at this step.

        Args:
            step: The optimizer step.
            summaries: One a series.
        """
        pairs = list(zip(self._series, summaries, strict=True))
        self._nonfinite(step, pairs)
        for series, summary in pairs:
            if series.kind == "preactivation":
                self._flat(step, series, summary)
        self._depth(step, [pair for pair in pairs if pair[0].kind == "preactivation"])

    def _nonfinite(self, step: int, pairs: Sequence[tuple[Series, ActivationSummary]]) -> None:
        new = [pair for pair in pairs if pair[1].nonfinite and self._is_new(pair[0], "nonfinite")]
        for kind, noun in (("preactivation", "pre-activations"), ("output", "outputs")):
            found = [(series.label, summary.nonfinite) for series, summary in new if series.kind == kind]
            if found:
                _warn(
                    f"Non-finite {noun} at step {step}: {', '.join(f'{number} in {label}' for label, number in found)} "
                    "(the first in the forward comes first). They enter no other statistic; the count goes on in "
                    f"{kind}_nonfinite. Lower the learning rate or clip gradients."
                )

    def _flat(self, step: int, series: Series, summary: ActivationSummary) -> None:
        dead = dead_share(summary, series.op)
        if self._lasts(series, "dead", dead >= DEAD):
            number = round(dead * series.channels)
            _warn(
                f"{number} of {series.channels} channels of {series.label} were never active in any of the last "
                f"{IN_A_ROW} recorded steps, step {step} the latest: every element lay where {series.op} is flat, so "
                "no gradient passes. Lower the learning rate, or insert a norm before the nonlinearity."
            )
        saturated = saturated_share(summary, series.op)
        if self._lasts(series, "saturated", is_two_sided(series.op) and saturated >= SATURATED):
            _warn(
                f"{saturated:.0%} of the pre-activations of {series.label} saturate {series.op} (derivative below 5 % "
                f"of its peak), {IN_A_ROW} recorded steps in a row, step {step} the latest; their standard deviation "
                f"is {math.sqrt(summary.variance):.3g}. Smaller initial weights or a norm before the nonlinearity "
                "bring them back."
            )

    def _depth(self, step: int, pairs: Sequence[tuple[Series, ActivationSummary]]) -> None:
        spread = [(series, math.sqrt(summary.variance)) for series, summary in pairs if summary.variance > 0]
        if len(spread) < _LEAST_LAYERS:
            return
        logs = [math.log(deviation) for _, deviation in spread]
        # The median of the slopes between all pairs of layers (Theil 1950): one odd layer is no trend.
        change = _slope(logs) * (len(logs) - 1)
        first, last = spread[0], spread[-1]
        if not self._lasts(first[0], "depth", min(abs(change), abs(logs[-1] - logs[0])) >= math.log(SPREAD)):
            return
        _warn(
            f"The standard deviation of pre-activations {'grows' if change > 0 else 'vanishes'} with depth: "
            f"{first[1]:.3g} in {first[0].label}, {last[1]:.3g} in {last[0].label}, a factor of "
            f"{math.exp(change / (len(logs) - 1)):.3g} a layer over {len(logs)} layers, {IN_A_ROW} recorded steps in a "
            f"row, step {step} the latest. Initialise for the nonlinearity in use, or insert norms."
        )

    def _lasts(self, series: Series, what: str, now: bool) -> bool:
        key = (series.kind, series.label, what)
        self._streaks[key] = self._streaks[key] + 1 if now else 0
        return self._streaks[key] >= IN_A_ROW and self._is_new(series, what)

    def _is_new(self, series: Series, what: str) -> bool:
        key = (series.kind, series.label, what)
        new = key not in self._told
        self._told.add(key)
        return new


def _slope(values: Sequence[float]) -> float:
    # At most forty layers, evenly picked: the pairs grow with the square.
    places = list(enumerate(values))[:: -(-len(values) // 40)]
    return median((later - earlier) / (end - start) for (start, earlier), (end, later) in combinations(places, 2))


def _warn(message: str) -> None:
    rank_zero_warn(message, category=StatisticsWarning)
