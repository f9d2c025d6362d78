"""Batches that a loss may take apart or write to, handed over so that the next run meets them whole."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def copied_batch(batch: Any) -> Any:
    """A batch of its own, so that a ``training_step`` that pops labels off it or writes to it does no harm.

    Tensors are always copied: whether a step writes to them may change from one to the next.

    Args:
        batch: Any nest of tensors.

    Returns:
        The copy. Objects that are neither containers nor tensors are shared.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(2), "y": torch.ones(2)}
        >>> copied_batch(batch).pop("x").add_(1).tolist(), batch["x"].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    # What most batches are; the walk through any nest takes a good part of a small network's forward.
    if type(batch) in (list, tuple) and all(isinstance(part, Tensor) for part in batch):
        return type(batch)(map(_copied, batch))
    return tree_map(_copied, batch)


def _copied(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.detach().clone().requires_grad_(part.requires_grad)
    # Mappings that torch does not know, as those of tokenizers.
    return copy.copy(part) if isinstance(part, Mapping) else part
