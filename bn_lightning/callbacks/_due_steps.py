"""Which batches begin an optimizer step that a schedule names."""

from bn_lightning.schedule import Schedule


class DueSteps:
    """Follows the batches of a fit, and knows which of them begins a due step.

    A step begins with the first batch that is trained for it: not with a second micro-batch, and not with a batch that
    a hook refused, by returning -1, together with the rest of the epoch. The first step of an epoch is the first that
    begins there.

    Args:
        schedule: Which optimizer steps are due.

    Attributes:
        seen: The step that the newest batch began, or went on with; None before the first.

    Example:
        >>> steps = DueSteps(Schedule(every_n_steps=2))
        >>> [steps.begins(0), steps.trained(), steps.begins(0), steps.trained(), steps.begins(1), steps.begins(2)]
        [True, None, False, None, False, True]
    """

    def __init__(self, schedule: Schedule) -> None:
        self.seen: int | None = None
        self._schedule = schedule
        self._epoch: int | None = None
        self._is_due = False
        self._has_begun = False

    def begin_epoch(self, epoch: int) -> None:
        """Let the next step that begins be the first of an epoch.

        Args:
            epoch: The epoch.
        """
        self._epoch = epoch

    def begins(self, step: int) -> bool:
        """Look at the coming batch.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            Whether it begins a due step; False for one that was said to be due before, with a batch that was refused.
        """
        if step == self.seen and self._has_begun:
            return False
        known = step == self.seen and self._is_due
        # One batch may take several optimizer steps (GANs), so a due step can lie between two batches.
        first = step if self.seen is None else self.seen + 1
        due = any(map(self._schedule.due, range(first, step))) or self._schedule.due(step, begins_epoch=self._epoch)
        self.seen, self._epoch, self._is_due, self._has_begun = step, None, due or known, False
        return due and not known

    def trained(self) -> None:
        """Say that the newest batch was trained on."""
        self._has_begun = True

    def due_at_end(self, step: int) -> bool:
        """Whether training ended at a due step that no batch was seen at.

        Args:
            step: Optimizer steps taken in all.

        Returns:
            Whether it did.
        """
        known = step == self.seen and (self._has_begun or self._is_due)
        return not known and self._schedule.due(step, begins_epoch=self._epoch)
