"""What a recalibration estimated, from how much, and how far it moved each norm."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RecalibratedNorm:
    """How one norm's statistics moved.

    Attributes:
        layer: The norm's path in the model.
        count: Values per channel that were seen, over all batches, uses and ranks.
        mean_drift: Root mean square over the channels of the mean's change, in units of the old √(σ² + ε).
        log_variance_ratio: Mean over the channels of ln (new σ² + ε)/(old σ² + ε); 0 is no change.
    """

    layer: str
    count: int
    mean_drift: float
    log_variance_ratio: float

    @classmethod
    def from_change(
        cls, layer: str, count: int, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], eps: float
    ) -> "RecalibratedNorm":
        """Measure the change from the old to the new statistics.

        Args:
            layer: The norm's path.
            count: Values per channel seen.
            old: The old mean and variance, ``[C]``.
            new: The new mean and variance, ``[C]``.
            eps: The norm's ε, so that dead channels do not divide by zero.

        Returns:
            The change.
        """
        (old_mean, old_variance), (new_mean, new_variance) = (
            (mean.cpu().double(), variance.cpu().double() + eps) for mean, variance in (old, new)
        )
        drift = ((new_mean - old_mean).square() / old_variance).mean().sqrt()
        return cls(layer, count, drift.item(), (new_variance / old_variance).log().mean().item())


@dataclass(frozen=True)
class SkippedNorm:
    """A norm that kept its old statistics.

    Attributes:
        layer: The norm's path in the model.
        reason: Why.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class RecalibrationReport:
    """The outcome of one recalibration.

    Attributes:
        estimator: Its name, see `recalibrate_batch_norm`.
        batches: Batches the statistics come from, over all ranks; merged ones count once.
        left_out: Batches left out, as some norm received fewer than two values a channel.
        layers: The norms that have new statistics.
        skipped: The norms that keep their old ones, with reasons.
        loss_before: What the loss was with the old statistics; None where no loss was given.
        loss_after: What it is with the new ones.
    """

    estimator: str
    batches: int
    left_out: int
    layers: tuple[RecalibratedNorm, ...]
    skipped: tuple[SkippedNorm, ...]
    loss_before: float | None = None
    loss_after: float | None = None

    def far(self, drift: float) -> tuple[RecalibratedNorm, ...]:
        """The norms whose statistics moved far.

        Args:
            drift: How many old σ a mean may move; σ itself may move by the factor 1 + `drift`.

        Returns:
            Those that moved further.
        """
        # A ratio of variances is the square of one of standard deviations.
        most = 2 * math.log1p(drift)
        return tuple(norm for norm in self.layers if norm.mean_drift > drift or abs(norm.log_variance_ratio) > most)

    def table(self) -> "pd.DataFrame":
        """One row a norm.

        Returns:
            Columns ``layer, count, mean_drift, log_variance_ratio, skipped``; `skipped` is the reason, or empty.
        """
        import pandas as pd

        rows: list[dict[str, object]] = [
            {
                "layer": norm.layer,
                "count": norm.count,
                "mean_drift": norm.mean_drift,
                "log_variance_ratio": norm.log_variance_ratio,
                "skipped": "",
            }
            for norm in self.layers
        ]
        rows += [
            {
                "layer": norm.layer,
                "count": 0,
                "mean_drift": float("nan"),
                "log_variance_ratio": float("nan"),
                "skipped": norm.reason,
            }
            for norm in self.skipped
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        furthest = max(self.layers, key=lambda norm: norm.mean_drift)
        widest = max(self.layers, key=lambda norm: abs(norm.log_variance_ratio))
        loss = "" if self.loss_after is None else f"; loss {self.loss_before:.4g} → {self.loss_after:.4g}"
        return (
            f"{len(self.layers)} batch norms from {self.batches} batches ({self.estimator}): the mean moved by up to "
            f"{furthest.mean_drift:.3g} σ ({furthest.layer}), the log variance by up to "
            f"{widest.log_variance_ratio:+.3g} ({widest.layer}); {len(self.skipped)} skipped{loss}"
        )
