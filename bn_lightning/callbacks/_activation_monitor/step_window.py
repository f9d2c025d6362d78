"""The forwards that belong to one optimizer step: when to record, and their statistics over all ranks."""

from collections.abc import Sequence

import torch

from bn_lightning.callbacks._due_steps import DueSteps
from bn_lightning.functional.activations import ActivationSummary
from bn_lightning.metrics.activations import ActivationStatistics
from bn_lightning.probes.gradients import GradientRecorder
from bn_lightning.probes.recorder import ActivationRecorder, Mode
from bn_lightning.schedule import Schedule


class StepWindow:
    """Opens at a due optimizer step, takes in the forwards of all its micro-batches, closes with statistics.

    Args:
        schedule: Which optimizer steps are due.
        channels: Channels of each activation, then of each gradient.
        max_elements: Elements read of an activation and forward.
        mode: "sampled" or "exact".
        device: Where ranks can exchange tensors.
        gradients: How many of the channels, the last ones, are those of gradients.

    Attributes:
        recorder: What hooks hand activations to.
        gradients: What hooks hand activations to whose gradients are recorded; None where none are.
        steps: Which batches begin a due step.
        step: The optimizer step the window is open for; None while it is closed.
    """

    def __init__(
        self,
        schedule: Schedule,
        channels: Sequence[int],
        *,
        max_elements: int | None,
        device: torch.device,
        mode: Mode = "sampled",
        gradients: int = 0,
    ) -> None:
        values = len(channels) - gradients
        self.recorder = ActivationRecorder(channels[:values], max_elements=max_elements, mode=mode)
        self.gradients: GradientRecorder | None = None
        if gradients:
            self.gradients = GradientRecorder(channels[values:], max_elements=max_elements, mode=mode)
        self.step: int | None = None
        self.steps = DueSteps(schedule)
        self._metric = ActivationStatistics(channels).to(device)
        self.record(False)

    def follow(self, other: "StepWindow") -> None:
        """Go on where another window of the same fit stopped: no step is seen twice, none is skipped.

        Args:
            other: A closed window.
        """
        self.steps = other.steps

    def open_if_due(self, step: int) -> bool:
        """Open the window if `step` begins a due optimizer step, and record if it is open.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            Whether a window was opened; False for the second micro-batch of a step.
        """
        opened = self.steps.begins(step)
        if opened or step != self.step:
            self.step = step if opened else None
        self.record(True)
        return opened

    def record(self, on: bool) -> None:
        """Record from now on, if the window is open; or stop. Gradients of what was recorded come until it closes."""
        self.recorder.recording = on and self.step is not None
        if self.gradients is not None:
            self.gradients.watching = self.recorder.recording
            self.gradients.taking = self.step is not None

    def is_over(self, step: int) -> bool:
        """Whether the window is open and its optimizer step has been taken."""
        return self.step is not None and step != self.step

    def close(self) -> tuple[ActivationSummary, ...]:
        """The statistics of the window over all ranks; every rank must call this.

        Returns:
            One summary for each activation, then one for each gradient.
        """
        summaries = self.recorder.summaries()
        if self.gradients is not None:
            summaries += self.gradients.summaries()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._metric.update(summaries)
            summaries = self._metric.summaries()
            self._metric.reset()
        self.recorder.reset()
        if self.gradients is not None:
            self.gradients.reset()
        self.step = None
        self.record(False)
        return summaries
