"""When to act: at every n-th step, densely at the start, at given steps."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Decides at which steps a callback acts.

    Steps are optimizer steps counted from 0. A step is due when any of the three rules names it.

    Args:
        every_n_steps: Act at steps 0, n, 2n, …; 0 turns the rule off.
        dense_until: Act at every step before this one.
        steps: Act at exactly these steps too.

    Raises:
        ValueError: If a number is negative, or no rule ever names a step.

    Example:
        >>> schedule = Schedule(every_n_steps=50, dense_until=2, steps=(7,))
        >>> [step for step in range(101) if schedule.due(step)]
        [0, 1, 7, 50, 100]
    """

    every_n_steps: int = 50
    dense_until: int = 0
    steps: Collection[int] = ()

    def __post_init__(self) -> None:
        if self.every_n_steps < 0 or self.dense_until < 0 or any(step < 0 for step in self.steps):
            raise ValueError(f"Steps are counted from 0, so none of {self} may be negative.")
        if not (self.every_n_steps or self.dense_until or self.steps):
            raise ValueError("The schedule never acts: give every_n_steps, dense_until or steps.")

    def due(self, step: int) -> bool:
        """Whether to act at the optimizer step `step`."""
        on_grid = bool(self.every_n_steps) and step % self.every_n_steps == 0
        return on_grid or step < self.dense_until or step in self.steps
