"""Run a model without leaving a trace on it: modes, buffers, gradients and random state come back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

IN_SANDBOX: ContextVar[bool] = ContextVar("IN_SANDBOX", default=False)
"""Whether a model runs for our own purposes, on examples that say nothing about its user's batches."""


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Give every module of `model` its own `training` flag back on exit, whatever happens inside."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Give torch's, NumPy's and Python's global generators their state back on exit."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy global generator is what user code draws from
    python_state = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)  # noqa: NPY002 - see above
        random.setstate(python_state)


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Give every buffer of `model` its values back on exit.

    Values are copied back in place, so references, devices and wrappers survive; a buffer that was
    replaced by assignment becomes the original tensor again.
    """
    saved: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
    for module in model.modules():
        for name, buffer in module._buffers.items():
            saved.append((module, name, buffer, None if buffer is None else buffer.detach().clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in saved:
                module._buffers[name] = buffer
                # Unchanged buffers are left alone: one that is an expanded view cannot be written to. Those on the
                # meta device have no values.
                if buffer is not None and values is not None and not buffer.is_meta and not torch.equal(buffer, values):
                    buffer.copy_(values)


@contextmanager
def preserve_gradients(model: nn.Module) -> Iterator[None]:
    """Give every parameter of `model` its `.grad` back on exit; inside, gradients start as None."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def sandbox(model: nn.Module) -> Iterator[None]:
    """Run `model` inside without any lasting effect on it or on the global generators.

    On exit, also by an exception or Ctrl-C, the training flag of every module, every buffer, every
    gradient and the random state of torch, NumPy and Python are as they were. Parameters are not
    copied: code inside must not step an optimizer.

    Args:
        model: The module to protect.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(3)
        >>> with sandbox(norm):
        ...     _ = norm(torch.randn(8, 3))
        >>> int(norm.num_batches_tracked)
        0
    """
    token = IN_SANDBOX.set(True)
    try:
        with preserve_modes(model), preserve_random_state(), preserve_buffers(model), preserve_gradients(model):
            yield
    finally:
        IN_SANDBOX.reset(token)
