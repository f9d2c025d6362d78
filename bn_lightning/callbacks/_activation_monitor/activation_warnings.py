"""Say what is wrong with a network's activations, gradients and norms, once a layer, with the evidence."""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import median

from torch import Tensor

from bn_lightning.callbacks._activation_monitor.norm_warnings import NormWarnings
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.callbacks._activation_monitor.streaks import IN_A_ROW, Streaks, warn
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.functional.saturation import dead_channels, is_two_sided, saturated_share
from bn_lightning.probes.norm_lag import NormLag

# In networks without norms that train well up to 0.29 of a layer's channels were dead; where biases outweigh what
# passes through the layers it can come near 0.5, since each sign is as likely.
DEAD = 0.6
# Of the elements read of a layer that has one flat side, where too few are read to say which channels are dead.
IDLE = 0.99
# Of the elements of a layer. In the last tanh of transformers that train well up to 0.62 were saturated, in some layer
# of networks that do not 0.94 or more.
SATURATED = 0.75
# Of the standard deviation between the first and the last layer; 100 is far outside of what depth alone does to
# networks that train.
SPREAD = 100.0
_LEAST_LAYERS = 4
# Of a channel and step: the few of a batch of one or two samples lie on one side by chance.
_LEAST_ELEMENTS = 8
_NOUNS = {"preactivation": "pre-activations", "activation": "activations", "output": "outputs"}
_NOUNS |= {f"{kind}_gradient": f"gradients of {noun}" for kind, noun in _NOUNS.items()}


class ActivationWarnings:
    """Looks at the statistics of each recorded step and warns.

    Args:
        series: What is recorded.
    """

    def __init__(self, series: Sequence[Series] = ()) -> None:
        self._series = tuple(series)
        self._streaks = Streaks()
        self._norms = NormWarnings()
        # For how many recorded steps each channel has been dead.
        self._dead: dict[Series, Tensor] = {}

    def change_series(self, series: Sequence[Series]) -> None:
        """Go on with other layers; what was told of those that remain is not told again.

        Args:
            series: What is recorded from now on.
        """
        self._series = tuple(series)

    def check(
        self,
        step: int,
        summaries: Sequence[ActivationSummary],
        *,
        lags: Sequence[NormLag] = (),
        is_loss_scaled: bool = False,
    ) -> None:
        """Warn of what is new at this step.

        Args:
            step: The optimizer step.
            summaries: One a series.
            lags: How far the running statistics of norms are from the batches of this step.
            is_loss_scaled: Whether a scaler looks for the largest scale of the loss without overflow in gradients, so
                that some are expected to.
        """
        pairs = list(zip(self._series, summaries, strict=True))
        self._nonfinite(step, [pair for pair in pairs if not (is_loss_scaled and pair[0].is_gradient)])
        self._unreached(step, pairs)
        self._norms.check(step, lags)
        for series, summary in pairs:
            if series.kind == "preactivation":
                self._flat(step, series, summary)
        self._depth(step, [pair for pair in pairs if pair[0].kind == "preactivation"])

    def _nonfinite(self, step: int, pairs: Sequence[tuple[Series, ActivationSummary]]) -> None:
        new = [pair for pair in pairs if pair[1].nonfinite and self._streaks.is_new((pair[0], "nonfinite"))]
        for kind, noun in _NOUNS.items():
            found = [(series.label, summary.nonfinite) for series, summary in new if series.kind == kind]
            if found:
                warn(
                    f"Non-finite {noun} at step {step}: {', '.join(f'{number} in {label}' for label, number in found)} "
                    "(the first in the forward comes first). They enter no other statistic; the count goes on in "
                    f"{kind}_nonfinite. Lower the learning rate or clip gradients."
                )

    def _unreached(self, step: int, pairs: Sequence[tuple[Series, ActivationSummary]]) -> None:
        met = {(series.kind, series.label) for series, summary in pairs if summary.elements}
        found = [
            series.label
            for series, summary in pairs
            if series.is_gradient
            and self._streaks.lasts((series, "unreached"), not summary.elements and _measured(series) in met)
        ]
        if found:
            warn(
                f"No gradient reached {', '.join(dict.fromkeys(found))} in the last {IN_A_ROW} recorded steps, step "
                f"{step} the latest: nothing at or before them is trained, or the loss does not depend on them. Their "
                "gradients are NaN in the table, not 0. Unfreeze what shall be trained, or leave these layers out."
            )

    def _flat(self, step: int, series: Series, summary: ActivationSummary) -> None:
        is_told = summary.extremes is not None and summary.count >= _LEAST_ELEMENTS * series.channels
        number = 0
        if is_told:
            dead = dead_channels(summary, series.op) == 1
            self._dead[series] = (self._dead.get(series, 0) + dead.long()) * dead
            number = int((self._dead[series] >= IN_A_ROW).sum())
        else:
            self._dead.pop(series, None)
        if number >= DEAD * series.channels and self._streaks.is_new((series, "dead")):
            warn(
                f"{number} of {series.channels} channels of {series.label} were never active in any of the last "
                f"{IN_A_ROW} recorded steps, step {step} the latest: every element lay where {series.op} is flat, so "
                "no gradient passes. Lower the learning rate, or insert a norm before the nonlinearity."
            )
        saturated = saturated_share(summary, series.op)
        idle = saturated >= IDLE and not (is_told or is_two_sided(series.op))
        if self._streaks.lasts((series, "dead"), idle):
            warn(
                f"{saturated:.1%} of the pre-activations of {series.label} that were read lay where {series.op} is "
                f"flat, {IN_A_ROW} recorded steps in a row, step {step} the latest: hardly any channel is active, and "
                "hardly any gradient passes. Lower the learning rate, or insert a norm before the nonlinearity."
            )
        if self._streaks.lasts((series, "saturated"), is_two_sided(series.op) and saturated >= SATURATED):
            warn(
                f"{saturated:.0%} of the pre-activations of {series.label} saturate {series.op} (derivative below 5 % "
                f"of its peak), {IN_A_ROW} recorded steps in a row, step {step} the latest; their standard deviation "
                f"is {math.sqrt(summary.variance):.3g}. Smaller initial weights or a norm before the nonlinearity "
                "bring them back."
            )

    def _depth(self, step: int, pairs: Sequence[tuple[Series, ActivationSummary]]) -> None:
        # Within channels: how biases and weights spread the channels' means says nothing of the samples.
        spread = [(series, deviation) for series, summary in pairs if (deviation := _deviation(summary)) > 0]
        if len(spread) < _LEAST_LAYERS:
            return
        logs = [math.log(deviation) for _, deviation in spread]
        # The median of the slopes between all pairs of layers (Theil 1950): one odd layer is no trend.
        change = _slope(logs) * (len(logs) - 1)
        first, last = spread[0], spread[-1]
        if not self._streaks.lasts((first[0], "depth"), min(abs(change), abs(logs[-1] - logs[0])) >= math.log(SPREAD)):
            return
        warn(
            "The standard deviation over samples of pre-activations "
            f"{'grows' if change > 0 else 'vanishes'} with depth: "
            f"{first[1]:.3g} in {first[0].label}, {last[1]:.3g} in {last[0].label}, a factor of "
            f"{math.exp(change / (len(logs) - 1)):.3g} a layer over {len(logs)} layers, {IN_A_ROW} recorded steps in a "
            f"row, step {step} the latest. Initialise for the nonlinearity in use, or insert norms."
        )


def _deviation(summary: ActivationSummary) -> float:
    total = float(summary.moments.count.sum())
    return math.sqrt(float(summary.moments.m2.sum()) / total) if total else 0.0


def _slope(values: Sequence[float]) -> float:
    # At most forty layers, evenly picked: the pairs grow with the square.
    places = list(enumerate(values))[:: -(-len(values) // 40)]
    return median((later - earlier) / (end - start) for (start, earlier), (end, later) in combinations(places, 2))


def _measured(gradient: Series) -> tuple[str, str]:
    return gradient.kind.removesuffix("_gradient"), gradient.label
