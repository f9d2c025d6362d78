"""The batches of the optimizer step that is under way and of the one before it, as training received them."""

from typing import Any

from bn_lightning.probes.copied_batch import WriteWatch, copied_batch


class StepBatches:
    """Keeps every micro-batch of a step before training takes it apart or writes to it.

    The first batch tells whether training writes to tensors; where it does not, they are shared, not copied.

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
        self._copies: bool | None = None
        self._watch: WriteWatch | None = None

    def begin_step(self) -> None:
        """Let the batches of now be those of last."""
        self.last, self.now = self.now, []

    def keep(self, batch: Any) -> None:
        """Keep a batch that training is about to take.

        Args:
            batch: The batch.
        """
        self.now.append(copied_batch(batch, tensors=self._copies is not False))
        if self._copies is None:
            self._watch = WriteWatch(batch)

    def trained_on(self, *, passed_over: bool = False) -> None:
        """Look at the batch kept last after training took it.

        Args:
            passed_over: Whether training took no gradient of it, so that it is no part of the step.
        """
        if self._watch is not None:
            self._copies, self._watch = self._watch.saw_writes, None
        if passed_over:
            self.now.pop()
