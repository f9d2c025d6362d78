"""Record the gradient of the loss with respect to activations, as backward passes meet them.

A hook on the tensor itself sees what reaches it: all of it, also where the tensor is used twice, and the gradient
with respect to its value at that moment, also where an in-place activation overwrites it afterwards.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bn_lightning.functional.activations import ActivationSummary, merge_summaries
from bn_lightning.functional.moments import Moments
from bn_lightning.probes.graph_op import numbered, read_in_graph
from bn_lightning.probes.recorder import ActivationRecorder, Mode
from bn_lightning.surgery.running.recompute import graph_task


class GradientRecorder:
    """Collects the gradients of watched tensors by their position in the forward and summarises them.

    Each backward pass that reaches a watched tensor counts by itself, as micro-batches do. A gradient that
    is computed to be differentiated again (`create_graph=True`, as in a gradient penalty) is not the loss's and is
    left out. A tensor that no gradient reaches has an empty summary, never zeros.

    No value is changed and no random number drawn. Under torch.compile the reading becomes one operator of the backward
    graph while `watching` is on, without a graph break. A forward that gradient checkpointing runs again inside
    the backward pass is watched there, since the first one may have been run without gradients; of the
    two that record a gradient only one is ever reached.

    Args:
        channels: Length of the channel axis of each tensor.
        max_elements: Elements read a gradient, as in `ActivationRecorder`.
        max_samples: Elements kept for percentiles.
        mode: "sampled" or "exact".

    Attributes:
        watching: Whether forwards arrange for their gradients to be recorded.
        taking: Whether gradients that arrive are taken in; also what lets a recomputed forward be watched.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]], requires_grad=True)
        >>> recorder, y = GradientRecorder([1]), 3 * x
        >>> recorder.watch("fc", 0, y, channel_dim=-1)
        >>> y.square().sum().backward()
        >>> recorder.summaries()[0].mean  # of 2y = (6, 12)
        9.0
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        max_elements: int | None = 1024,
        max_samples: int | None = 4096,
        mode: Mode = "sampled",
    ) -> None:
        self.watching = True
        self.taking = True
        self._recorder = ActivationRecorder(channels, max_elements=max_elements, max_samples=max_samples, mode=mode)
        self._divisor = 1.0
        self._earlier: tuple[ActivationSummary, ...] = ()
        self._number = numbered(self)
        self._ticks = torch.zeros(1, dtype=torch.int64)
        self._leaf_handles: list[RemovableHandle] = []

    def watch(self, layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        """Arrange that the gradient with respect to `activation`, as it is now, is recorded.

        Args:
            layer: Path of the layer; not used, as it may come several times.
            index: Its position in `channels`.
            activation: The tensor, with its gradient history; without one nothing happens.
            channel_dim: Its channel axis.
        """
        if torch.compiler.is_compiling():
            if self.watching and activation.requires_grad and not activation.is_leaf:
                ticks, number = self._ticks, self._number
                activation.register_hook(
                    lambda gradient: read_in_graph(ticks, gradient.detach(), number, index, channel_dim)
                )
            return
        if not (self.watching or (self.taking and graph_task() != -1)) or not activation.requires_grad:
            return

        def take(gradient: Tensor | None) -> None:
            # None comes where only a neighbour out of one operation has a gradient, as behind a split.
            if gradient is not None and not torch.is_grad_enabled():
                self.read(index, gradient.detach(), channel_dim)

        handle = activation.register_hook(take)
        if activation.is_leaf:
            # A parameter that a module returned outlives the step, and would keep its hook.
            self._leaf_handles.append(handle)

    def read(self, index: int, activation: Tensor, channel_dim: int) -> None:
        """Take in one gradient, if gradients are taken at all.

        Args:
            index: Its position in `channels`.
            activation: The gradient.
            channel_dim: Its channel axis.
        """
        if self.taking:
            self._recorder.read(index, activation, channel_dim)

    def divide_by(self, divisor: float) -> None:
        """Divide gradients from now on by a positive number, such as the scale of the loss in mixed precision.

        Args:
            divisor: The number.
        """
        if divisor != self._divisor:
            self._fold()
            self._divisor = divisor

    def summaries(self) -> tuple[ActivationSummary, ...]:
        """One summary for each tensor over all gradients since the last `reset`, on the CPU."""
        new = self._recorder.summaries()
        if self._divisor != 1:
            new = tuple(scaled(summary, 1 / self._divisor) for summary in new)
        if not self._earlier:
            return new
        return tuple(merge_summaries(before, after) for before, after in zip(self._earlier, new, strict=True))

    def reset(self) -> None:
        """Begin a new window; what is watched already is still recorded if it comes."""
        self._recorder.reset()
        self._earlier = ()
        self.remove()

    def remove(self) -> None:
        """Take hooks off tensors that outlive a backward pass; a second call does nothing."""
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles.clear()

    def _fold(self) -> None:
        self._earlier = self.summaries()
        self._recorder.reset()


def scaled(summary: ActivationSummary, factor: float) -> ActivationSummary:
    """The summary of `factor` times the tensor.

    Args:
        summary: Of the tensor.
        factor: A positive number.

    Returns:
        A summary with the same counts.

    Example:
        >>> recorder = ActivationRecorder([1])
        >>> recorder.receive("fc", 0, torch.tensor([[1.0], [3.0]]), channel_dim=-1)
        >>> twice = scaled(recorder.summaries()[0], 2.0)
        >>> twice.mean, twice.variance, twice.count
        (4.0, 4.0, 2)
    """
    moments = summary.moments
    powers = (moments.m2 * factor**2, moments.m3 * factor**3, moments.m4 * factor**4)
    return replace(
        summary,
        moments=Moments(moments.count, moments.mean * factor, *powers),
        values=summary.values * factor,
        extremes=None if summary.extremes is None else summary.extremes * factor,
    )


def norm_of(summary: ActivationSummary) -> float:
    """The L2 norm of all finite elements, √(n·(σ² + μ²)).

    Args:
        summary: Of a gradient; from a sample of k elements the norm is an estimate whose relative standard error is
            at most √((kurtosis − 1)/k)/2 for a mean of zero.

    Returns:
        The norm; NaN where nothing was recorded.

    Example:
        >>> recorder = ActivationRecorder([2])
        >>> recorder.receive("fc", 0, torch.tensor([[3.0, 4.0]]), channel_dim=-1)
        >>> norm_of(recorder.summaries()[0])
        5.0
    """
    return float(torch.tensor(summary.count * (summary.variance + summary.mean**2), dtype=torch.float64).sqrt())
