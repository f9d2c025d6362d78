"""The batches of the optimizer step that is under way and of the one before it, as training received them."""

from typing import Any

from bn_lightning.probes.copied_batch import copied_batch


class StepBatches:
    """Keeps every micro-batch of a step before training takes it apart or writes to it.

    A batch that training never took, as when a hook skips the rest of an epoch, is let go of.

    Attributes:
        now: Batches of the step under way.
        last: Batches of the step before; empty at first.

    Example:
        >>> import torch
        >>> batches, batch = StepBatches(), {"x": torch.zeros(2)}
        >>> batches.keep(batch)
        >>> _ = batch.pop("x").add_(1)
        >>> batches.trained_on()
        >>> batches.now
        [{'x': tensor([0., 0.])}]
    """

    def __init__(self) -> None:
        self.now: list[Any] = []
        self.last: list[Any] = []
        self._is_under_way = False

    def begin_step(self) -> None:
        """Let the batches of now be those of last."""
        self._drop_skipped()
        self.last, self.now = self.now, []

    def keep(self, batch: Any) -> None:
        """Keep a batch that training is about to take.

        Args:
            batch: The batch.
        """
        self._drop_skipped()
        self.now.append(copied_batch(batch))
        self._is_under_way = True

    def trained_on(self, *, passed_over: bool = False) -> None:
        """Say that training took the batch kept last.

        Args:
            passed_over: Whether training took no gradient of it, so that it is no part of the step.
        """
        self._is_under_way = False
        if passed_over:
            self.now.pop()

    def _drop_skipped(self) -> None:
        if self._is_under_way:
            self.now.pop()
            self._is_under_way = False
