"""Batches that a loss may take apart or write to, handed over so that the next run meets them whole."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def copied_batch(batch: Any, *, tensors: bool) -> Any:
    """A batch in containers of its own, so that a ``training_step`` that pops labels off it does no harm.

    Args:
        batch: Any nest of tensors.
        tensors: Whether to copy tensors too, for a step that writes to them in place.

    Returns:
        The copy. Objects that are neither containers nor tensors are shared.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(2), "y": torch.ones(2)}
        >>> copied_batch(batch, tensors=True).pop("x").add_(1).tolist(), batch["x"].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    if not tensors and type(batch) in (list, tuple, dict):
        # What most batches are; the walk through any nest takes a good part of a small network's forward.
        parts = batch.values() if isinstance(batch, dict) else batch
        if all(isinstance(part, Tensor) for part in parts):
            return copy.copy(batch)

    def leaf(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.detach().clone().requires_grad_(part.requires_grad) if tensors else part
        # Mappings that torch does not know, as those of tokenizers.
        return copy.copy(part) if isinstance(part, Mapping) else part

    return leaf(batch) if isinstance(batch, Tensor) else tree_map(leaf, batch)


class WriteWatch:
    """Tells whether tensors of a batch were written to, also of those that were taken off it since.

    Args:
        batch: Any nest of tensors; those made in inference mode, which count no writes, are left out.

    Example:
        >>> import torch
        >>> batch = [torch.zeros(2)]
        >>> watch = WriteWatch(batch)
        >>> _ = batch.pop()[:1].mul_(2)
        >>> watch.saw_writes
        True
    """

    def __init__(self, batch: Any) -> None:
        tensors = [part for part in tree_leaves(batch) if isinstance(part, Tensor) and not part.is_inference()]
        self._versions = [(part, part._version) for part in tensors]

    @property
    def saw_writes(self) -> bool:
        """Whether any was written to since."""
        return any(part._version != version for part, version in self._versions)
