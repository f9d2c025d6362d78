"""Recognise causal attention: the call says so, or its mask or its scores hide every later position.

The scores of hand-written attention are judged by their values at the softmax, so it does not matter
how the mask was made and applied (masked_fill, where, an additive mask, torch.tril).
"""

from typing import Any

import torch
from torch import Tensor

# Masks are minus infinity, the least finite number of the type (-65504 for half precision) or, in older
# models, -10000; no score that is meant to count comes near.
_HIDDEN = -9e3
_MHA_MASK = 16  # position of attn_mask in torch.nn.functional.multi_head_attention_forward


def is_causal(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is attention over two or more positions of which none sees a later one.

    Args:
        op: Bare name of the function.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        True where the call says `is_causal`, its mask hides the future, or its scores do.

    Example:
        >>> scores = torch.randn(2, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
        >>> is_causal("softmax", (scores, -1), {}), is_causal("softmax", (scores.transpose(1, 2), -1), {})
        (True, False)
    """
    values = dict(enumerate(args)) | kwargs
    if op == "scaled_dot_product_attention":
        query, mask = values.get(0, values.get("query")), values.get(3, values.get("attn_mask"))
        if values.get(5, values.get("is_causal", False)):
            return isinstance(query, Tensor) and query.shape[-2] > 1
        return isinstance(mask, Tensor) and hides_future(~mask if mask.dtype == torch.bool else mask <= _HIDDEN)
    if op == "multi_head_attention_forward":
        mask = values.get(_MHA_MASK, values.get("attn_mask"))
        return isinstance(mask, Tensor) and hides_future(mask if mask.dtype == torch.bool else mask <= _HIDDEN)
    if op == "softmax":
        scores, dim = values.get(0, values.get("input")), values.get(1, values.get("dim"))
        # The corner alone tells most softmaxes from a causal one at no cost.
        if isinstance(scores, Tensor) and scores.ndim > 1 and dim in (-1, scores.ndim - 1) and not scores.is_meta:
            return bool((scores[..., 0, -1] <= _HIDDEN).all()) and hides_future(scores <= _HIDDEN)
    if op in ("matmul", "bmm", "einsum"):
        return any(_is_lower_triangle(value) for value in args if isinstance(value, Tensor))
    return False


def hides_future(hidden: Tensor) -> bool:
    """Whether a mask hides all later positions and not everything.

    Args:
        hidden: Booleans of shape `(..., queries, keys)`; True hides. With more keys than queries, either the first or
            the last query and key are at the same time.

    Returns:
        The answer; False for a single position, where nothing is later.

    Example:
        >>> hides_future(torch.ones(3, 3).triu(1).bool())
        True
    """
    if hidden.ndim < 2 or hidden.is_meta:
        return False
    queries, keys = hidden.shape[-2:]
    if queries < 2 or keys < queries or bool(hidden.all()):
        return False
    flat = hidden.flatten(0, -3) if hidden.ndim > 2 else hidden[None]
    for ahead in {0, keys - queries}:
        later = torch.ones(queries, keys, dtype=torch.bool, device=hidden.device).triu(1 + ahead)
        if bool(flat[:, later].all()):
            return True
    return False


def _is_lower_triangle(weights: Tensor) -> bool:
    """Whether square weights of three positions or more are zero above the diagonal and nowhere below it."""
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] < 3 or weights.is_meta:
        return False
    if weights.is_nested or weights.layout != torch.strided or bool((weights[..., 0, -1] != 0).any()):
        return False
    above = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).triu(1)
    return not bool(weights[..., above].any()) and bool(weights[..., above.T].all())
