"""When to act: at every n-th step or epoch, densely at the start, at given steps."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Decides at which steps a callback acts.

    Steps are optimizer steps counted from 0, epochs too. A step is due when any of the rules names it.

    Args:
        every_n_steps: Act at steps 0, n, 2n, …; 0 turns the rule off.
        dense_until: Act at every step before this one.
        steps: Act at exactly these steps too.
        every_n_epochs: Act at the first step of epochs 0, n, 2n, …; 0 turns the rule off.

    Raises:
        TypeError: If a number is not a whole one.
        ValueError: If a number is negative, or no rule ever names a step.

    Example:
        >>> schedule = Schedule(every_n_steps=50, dense_until=2, steps=(7,))
        >>> [step for step in range(101) if schedule.due(step)]
        [0, 1, 7, 50, 100]
        >>> by_epoch = Schedule(every_n_steps=0, every_n_epochs=2)
        >>> [step for step in range(40) if by_epoch.due(step, begins_epoch=step // 10 if step % 10 == 0 else None)]
        [0, 20]
    """

    every_n_steps: int = 50
    dense_until: int = 0
    steps: Collection[int] = ()
    every_n_epochs: int = 0

    def __post_init__(self) -> None:
        named = {"every_n_steps": self.every_n_steps, "dense_until": self.dense_until}
        named |= {"every_n_epochs": self.every_n_epochs, **{f"steps[{at}]": n for at, n in enumerate(self.steps)}}
        for name, number in named.items():
            if isinstance(number, bool) or not hasattr(number, "__index__"):
                raise TypeError(f"Steps and epochs are whole numbers, so {name} cannot be {number!r}.")
        if any(number < 0 for number in named.values()):
            raise ValueError(f"Steps and epochs are counted from 0, so none of {self} may be negative.")
        if not (self.every_n_steps or self.dense_until or self.steps or self.every_n_epochs):
            raise ValueError("The schedule never acts: give every_n_steps, every_n_epochs, dense_until or steps.")

    def __repr__(self) -> str:
        # Without what is at its default and came later: the text is part of keys in older checkpoints.
        later = f", every_n_epochs={self.every_n_epochs}" if self.every_n_epochs else ""
        return (
            f"Schedule(every_n_steps={self.every_n_steps!r}, dense_until={self.dense_until!r}, "
            f"steps={self.steps!r}{later})"
        )

    def due(self, step: int, *, begins_epoch: int | None = None) -> bool:
        """Whether to act at the optimizer step `step`.

        Args:
            step: The step.
            begins_epoch: The epoch that it is the first step of; None for a step within an epoch.

        Returns:
            Whether any rule names it.
        """
        on_grid = bool(self.every_n_steps) and step % self.every_n_steps == 0
        if self.every_n_epochs and begins_epoch is not None:
            on_grid |= begins_epoch % self.every_n_epochs == 0
        return on_grid or step < self.dense_until or step in self.steps
