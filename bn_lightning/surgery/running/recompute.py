"""Gradient checkpointing runs a forward again within the backward pass; running statistics must move once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

graph_task = torch._C._current_graph_task_id
"""Number of the backward pass that runs on this thread; -1 outside of any. Compilers cannot trace it."""


@contextmanager
def held_buffers(norm: nn.Module) -> Iterator[None]:
    """Let a norm write to copies of its buffers, so that its own stay as they are.

    It still normalises by the batch and hands the same kinds of tensors to autograd as it did in the first run,
    which gradient checkpointing compares. So the buffers are copied instead of left out.

    Args:
        norm: A norm, or a module that holds norms.

    Yields:
        Nothing; upon leaving, the norm has its own buffers again.
    """
    owned = [(module, dict(module._buffers)) for module in norm.modules()]
    try:
        for module, buffers in owned:
            module._buffers.update({name: None if own is None else own.clone() for name, own in buffers.items()})
        yield
    finally:
        for module, buffers in owned:
            module._buffers.update(buffers)
