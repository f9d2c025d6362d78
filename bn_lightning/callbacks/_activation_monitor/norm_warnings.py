"""Say which norms' running statistics are not what evaluation needs, once a norm, with the evidence."""

from collections.abc import Sequence

from bn_lightning.callbacks._activation_monitor.streaks import IN_A_ROW, Streaks, warn
from bn_lightning.probes.norm_lag import NormLag

# Of the running standard deviation, and of the running variance or its inverse, for the median channel. A residual net
# that trains well has at most 0.1 and 1.2 for three records in a row.
SHIFT = 1.0
RATIO = 4.0
# Before this is what is left of it, a norm's running statistics may say more about their first content than about
# training: 0.05 of the variance 1 they start with is 5 times the batch's where this is 0.01.
INITIAL_WEIGHT = 1e-3


class NormWarnings:
    """Looks at how far norms are behind their batches at each recorded step and warns."""

    def __init__(self) -> None:
        self._streaks = Streaks()

    def check(self, step: int, lags: Sequence[NormLag]) -> None:
        """Warn of what is new at this step.

        Args:
            step: The optimizer step.
            lags: One for each norm that saw batches of this step.
        """
        for lag in lags:
            self._broken(step, lag)
            self._far(step, lag)

    def _broken(self, step: int, lag: NormLag) -> None:
        if lag.broken and self._streaks.is_new((lag.norm, "broken")):
            warn(
                f"{lag.broken} channels of the norm {lag.norm} have NaN or infinity in their running statistics at "
                f"step {step}, and no later batch mends them: evaluation returns NaN. Find the batch that brought "
                "them, and estimate them anew with BatchNormRecalibration or recalibrate_batch_norm."
            )

    def _far(self, step: int, lag: NormLag) -> None:
        far = lag.shift >= SHIFT or lag.ratio >= RATIO or lag.ratio <= 1 / RATIO
        if self._streaks.lasts((lag.norm, "far"), far and lag.initial_weight <= INITIAL_WEIGHT):
            warn(
                f"The running statistics of the norm {lag.norm}, which evaluation uses, are far from those of the "
                f"batches it is trained on: the median channel's batch mean lies {lag.shift:.2g} running standard "
                f"deviations off and its batch variance is {lag.ratio:.2g} times the running one, {IN_A_ROW} recorded "
                f"steps in a row, step {step} the latest. Estimate them anew before evaluation "
                "(BatchNormRecalibration), lower the learning rate, or let them follow faster: "
                f"{_momentum(lag.momentum)}."
            )


def _momentum(momentum: float | None) -> str:
    if momentum is None:
        return "momentum=None weighs all batches since the start alike, momentum=0.1 the last ones most"
    return f"momentum={momentum:g} is the weight of a new batch, and may be greater"
