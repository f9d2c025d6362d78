"""Digests of arrays and tensors by their values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.short_digest import short_digest


def array_digest(value: Any, tell: Callable[[Any], str]) -> dict[str, Any]:
    """Digest an array or a tensor.

    Args:
        value: A NumPy array or number, or a tensor.
        tell: Digests the list that stands for an array of objects, whose bytes are addresses.

    Returns:
        The digest of its bytes, its shape and its dtype; the digest of its mask too, if it has one.

    Example:
        >>> array_digest(torch.zeros(2), str)
        {'shape': [2], 'dtype': 'torch.float32', 'array': 'af5570f5a181'}
    """
    said: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Tensor):
        if value.is_meta:
            return said
        flat = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
        flat = flat.resolve_conj().resolve_neg().contiguous().reshape(-1)
        value = flat.view(torch.uint8).numpy()  # NumPy has no bfloat16
    if isinstance(value, np.ma.MaskedArray):
        said["mask"] = array_digest(np.ma.getmaskarray(value), tell)["array"]
    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:
        return {**said, "array": tell(array.tolist())}
    return {**said, "array": short_digest(array.reshape(-1).view(np.uint8).data)}


def parameter_digest(weights: nn.Parameter) -> list[Any]:
    """Digest a parameter as far as it is the same in every process.

    Args:
        weights: The parameter.

    Returns:
        Its shape and dtype, as weights that are drawn differ between processes, and its values too where nothing looks
        drawn, that is where all are equal; and whether it is trained.

    Example:
        >>> parameter_digest(nn.Linear(3, 2).weight)
        [[[2, 3], 'torch.float32'], True]
    """
    values = weights.detach()
    constant = not values.is_meta and (not values.ndim or (values.numel() > 1 and bool((values == values.min()).all())))
    return [array_digest(values, str) if constant else [list(values.shape), str(values.dtype)], weights.requires_grad]
