"""The distribution of each series at some of the recorded steps, for drawing it over time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

QUANTILES = 64
"""How many quantiles are kept of a series and step: in the middle of as many equal shares."""

PERCENTAGES = tuple(100 * (number + 0.5) / QUANTILES for number in range(QUANTILES))
_MOST_STEPS = 80


class DistributionHistory:
    """Keeps the quantiles of every series at up to 80 steps, evenly spread over those offered.

    When it is full every second step is dropped, and from then on only every second one that is offered is taken. So
    the memory is bounded (20 KB a series) however long the run is.
    """

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._stride = 1
        self._offered = 0

    def add(self, step: int, quantiles: Mapping[str, Sequence[float]]) -> None:
        """Take in a step, if it is one of those to keep.

        Args:
            step: The optimizer step.
            quantiles: By series, at `PERCENTAGES`, ascending; without NaN.
        """
        import numpy as np

        if self._offered % self._stride == 0:
            self._kept[step] = {series: np.array(values, dtype=np.float32) for series, values in quantiles.items()}
        self._offered += 1
        if len(self._kept) > _MOST_STEPS:
            self._kept = {step: self._kept[step] for step in list(self._kept)[::2]}
            self._stride *= 2

    def of(self, series: str) -> dict[int, "np.ndarray"]:
        """What was kept of a series.

        Args:
            series: Its name.

        Returns:
            Quantiles by step, ascending.
        """
        return {step: kept[series] for step, kept in self._kept.items() if series in kept}
