"""Collect the batch statistics of every norm's input while a model runs, and change nothing else.

Each norm normalises by the statistics of the batch, as in training mode, and its running buffers are
not touched. A batch of inputs ``[N, C]`` has m = N values a channel, ``[N, C, L]`` m = N·L, ``[N, C, H, W]``
m = N·H·W.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from bn_lightning.surgery.statistics.norm_statistics import BATCHES_A_REDUCTION, NormStatistics
from bn_lightning.surgery.statistics.running_statistics import running_statistics


class EnoughSeen(Exception):
    """Every norm of this batch has been seen, so the rest of the forward would be wasted.

    An Exception rather than a BaseException, because torch runs the hooks that must always run only
    for the former.
    """


class BatchStatisticsCollector:
    """Runs batches and collects the statistics of every norm's input.

    Norms whose forward is torch's own compute their batch statistics once, in the very kernel that
    normalises, which writes them to a row of ours in place of the running buffers. Norms with a forward of
    their own are read in a hook and run as they do in training mode.

    Args:
        layers: The norms; each with running statistics.
        may_stop: Whether a forward may be stopped after its last norm. It is, for batches other than
            the 1st, 2nd, 4th, 8th, …, if every norm ran exactly once in each of these.
    """

    def __init__(self, layers: Sequence[NormStatistics], *, may_stop: bool) -> None:
        self.layers = layers
        self.accepted = 0
        self._number = 0
        self.stopped = 0
        self.too_small: tuple[str, tuple[int, ...]] | None = None
        self.calls_vary = False
        self._may_stop = may_stop
        self._stopping = False
        self._closed = False
        self._settling = False
        self._seen = 0
        self._calls = 0

    @property
    def first_broken(self) -> tuple[int, str] | None:
        """The first batch with NaN or infinity, counted from 0, and the first norm that saw it; None if all is well."""
        broken = [(layer.broken, layer.name) for layer in self.layers if layer.broken is not None]
        if not broken:
            return None
        (batch, _), name = min(broken)
        return batch, name

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the norms in training mode and read them, until the block is left."""
        handles: list[RemovableHandle] = []
        patched: list[_BatchNorm] = []
        try:
            for layer in self.layers:
                layer.norm.training = True
                if type(layer.norm).forward is _BatchNorm.forward and "forward" not in vars(layer.norm):
                    vars(layer.norm)["forward"] = self._fused_forward(layer)
                    patched.append(layer.norm)
                else:
                    hook = self._reading_hook(layer)
                    handles.append(layer.norm.register_forward_pre_hook(hook, with_kwargs=True))
            with _uncompiled():
                yield
        finally:
            for norm in patched:
                vars(norm).pop("forward", None)
            for handle in handles:
                handle.remove()

    def run(self, forward: Callable[[], Any], number: int) -> bool:
        """Run one batch; on an exception nothing of it is kept.

        Args:
            forward: Runs the model on the batch.
            number: Its number among the batches, from 0.

        Returns:
            Whether the batch was kept; not if a norm received fewer than two values a channel, for which
            `too_small` then names the norm and its input's shape.
        """
        self.too_small, self._closed, self._seen = None, False, 0
        self._number = number
        verify = self.accepted & (self.accepted + 1) == 0
        self._stopping = self._may_stop and not verify
        kept = False
        try:
            forward()
            # A forward that went on after our exception swallowed it; do not try again.
            self._may_stop &= not self._closed
            kept = self.too_small is None
        except Exception as error:
            if not (self._closed and _caused_by_stop(error)):
                raise
            self._may_stop &= isinstance(error, EnoughSeen)
            kept = True
        finally:
            if not kept:
                for layer in self.layers:
                    layer.keep_only(layer.kept)
        if not kept:
            return False
        once = all(len(layer.counts) == layer.kept + 1 for layer in self.layers)
        self.stopped += self._closed
        if self._may_stop and not once:
            self._may_stop = False
            self.calls_vary = self.stopped > 0
        self.accepted += 1
        for layer in self.layers:
            layer.kept = len(layer.counts)
        if any(len(layer.counts) >= BATCHES_A_REDUCTION for layer in self.layers):
            self.reduce()
        return True

    def settle(self, forwards: Iterable[tuple[int, Callable[[], Any]]]) -> None:
        """Take in batches that were too small for some norm: there they are normalised by all the others.

        A single value a channel has no variance of its own, so the norm uses the mean and variance of what it has
        received so far, as it will in evaluation; the value counts as one.

        Side effect: the running buffers hold what was collected; they are the caller's to restore.

        Args:
            forwards: Number and forward of each batch that `run` did not keep.
        """
        self.reduce()
        for layer in self.layers:
            if layer.sums is not None:
                for buffer, value in zip(running_statistics(layer.norm), layer.sums.pooled(), strict=True):
                    buffer.copy_(value)
        self._may_stop, self._settling = False, True
        for number, forward in forwards:
            self.run(forward, number)

    def reduce(self) -> None:
        """Bring the float64 sums of every layer up to date."""
        for layer in self.layers:
            layer.reduce()

    def _fused_forward(self, layer: NormStatistics) -> Callable[[Tensor], Tensor]:
        norm, dtype = layer.norm, layer.dtype
        cudnn = torch.backends.cudnn.enabled

        def forward(input: Tensor) -> Tensor:
            norm._check_input_dim(input)
            count = input.numel() // layer.channels
            if count < 2:
                self._note_single(layer, input)
                return F.batch_norm(
                    input, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
                )
            if self._closed:
                return F.batch_norm(input, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
            mean, variance = self._new_row(layer, count)
            weight, bias = norm.weight, norm.bias
            parameters = weight if weight is not None else bias
            if (parameters is None or parameters.dtype == dtype) and (input.dtype == dtype or dtype == torch.float32):
                # Momentum 1 makes the kernel write this batch's own statistics.
                output = torch.batch_norm(input, weight, bias, mean, variance, True, 1.0, norm.eps, cudnn)
            else:
                # Parameters in half precision would ask for statistics in half precision.
                scale, shift = (None if part is None else part.to(dtype) for part in (weight, bias))
                output = torch.batch_norm(input.to(dtype), scale, shift, mean, variance, True, 1.0, norm.eps, cudnn)
                output = output.to(input.dtype)
            self._note(layer)
            return output

        return forward

    def _reading_hook(self, layer: NormStatistics) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            input = args[0] if args else next(iter(kwargs.values()))
            if input.dim() < 2 or input.shape[1] != layer.channels:
                raise ValueError(
                    f"The batch statistics of {layer.name} ({type(norm).__name__}) cannot be told: its own forward "
                    f"takes an input of shape {tuple(input.shape)}, whose axis 1 does not hold its "
                    f"{layer.channels} channels. Freeze it with .eval() to leave it out."
                )
            count = input.numel() // layer.channels
            # A norm that cannot take one value a channel in training mode must not stop the batch.
            norm.training = count >= 2
            if count < 2:
                self._note_single(layer, input)
                return
            if self._closed:
                return
            axes = [axis for axis in range(input.dim()) if axis != 1]
            variance, mean = torch.var_mean(input.detach().to(layer.dtype), axes)
            mean_row, variance_row = self._new_row(layer, count)
            mean_row.copy_(mean)
            variance_row.copy_(variance)
            self._note(layer)

        return hook

    def _new_row(self, layer: NormStatistics, count: int) -> tuple[Tensor, Tensor]:
        self._calls += 1
        return layer.new_row(count, (self._number, self._calls))

    def _note_single(self, layer: NormStatistics, input: Tensor) -> None:
        if not self._settling:
            self.too_small = self.too_small or (layer.name, tuple(input.shape))
        elif input.numel():
            mean, variance = self._new_row(layer, 1)
            mean.copy_(input.detach().reshape(-1))
            variance.zero_()

    def _note(self, layer: NormStatistics) -> None:
        self._seen += len(layer.counts) == layer.kept + 1
        if self._stopping and self._seen == len(self.layers) and self.too_small is None:
            self._closed = True
            raise EnoughSeen


def _caused_by_stop(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, EnoughSeen):
            return True
        error = error.__cause__ or error.__context__
    return False


def _uncompiled() -> Any:
    """Compiled models run eagerly inside, because a compiled graph does not see a replaced forward."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
