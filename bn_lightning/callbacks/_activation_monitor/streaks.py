"""Tell something once, and only when several recorded steps in a row show it."""

from collections import Counter
from collections.abc import Hashable

from bn_lightning.callbacks._compat import rank_zero_warn
from bn_lightning.errors import StatisticsWarning

IN_A_ROW = 3
"""How many recorded steps in a row must agree: a single batch may be odd."""


class Streaks:
    """Counts for how many recorded steps in a row something was so, and remembers what was told.

    Example:
        >>> streaks = Streaks()
        >>> [streaks.lasts("fc", now) for now in (True, True, False, True, True, True, True)]
        [False, False, False, False, False, True, False]
    """

    def __init__(self) -> None:
        self._told: set[Hashable] = set()
        self._lengths: Counter[Hashable] = Counter()

    def lasts(self, what: Hashable, now: bool) -> bool:
        """Whether it is so for the third recorded step in a row or more, and was not told yet; it is from now on.

        Args:
            what: What is told once.
            now: Whether it is so at this step.

        Returns:
            Whether to tell it.
        """
        self._lengths[what] = self._lengths[what] + 1 if now else 0
        return self._lengths[what] >= IN_A_ROW and self.is_new(what)

    def is_new(self, what: Hashable) -> bool:
        """Whether it was not told yet; it is from now on.

        Args:
            what: What is told once.

        Returns:
            Whether to tell it.
        """
        new = what not in self._told
        self._told.add(what)
        return new


def warn(message: str) -> None:
    """Warn of what was recorded, on rank zero."""
    rank_zero_warn(message, category=StatisticsWarning)
