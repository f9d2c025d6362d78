"""Recognise a ReLU that is written with other functions: `torch.maximum(x, 0)`, `where(x > 0, x, 0)` and their kin.

Whether an operand is zero is read off its values, and where it comes from off the trace: a layer whose
output happens to be zero is not a constant.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bn_lightning.surgery.tracing.graph import Node

_COMPARISONS = frozenset("gt ge lt le greater greater_equal less less_equal".split())
_SELECTIONS = frozenset("where masked_fill mul multiply".split())
_ELEMENTWISE = frozenset({"pass", "product", "join", "other", "nonlinearity"})
_MAX_STEPS = 16


def called(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], is_constant: Callable[[Tensor], bool]
) -> tuple[str, Tensor] | None:
    """What one call amounts to where it is a ReLU: a maximum with zero, or a lower bound of zero.

    Args:
        op: Bare name of the function.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        is_constant: Whether a tensor is the same for every example.

    Returns:
        "relu", or "relu6" where the upper bound is six, and the pre-activation; None where the call is neither.

    Example:
        >>> x = torch.zeros(2)
        >>> called("clamp", (x,), {"min": 0}, lambda tensor: False)
        ('relu', tensor([0., 0.]))
        >>> called("clamp", (x, 0, 1), {}, lambda tensor: False) is None
        True
    """
    values = dict(enumerate(args)) | kwargs
    first = values.get(0, values.get("input"))
    if not isinstance(first, Tensor):
        return None

    def is_zero(value: Any) -> bool:
        if isinstance(value, Tensor):
            return is_constant(value) and not value.is_meta and not bool(value.any())
        return isinstance(value, int | float) and not isinstance(value, bool) and value == 0

    data: Tensor | None = None
    name = "relu"
    if op in ("maximum", "max"):
        other = values.get(1, values.get("other"))
        if isinstance(other, Tensor):
            data = first if is_zero(other) else other if is_zero(first) else None
    elif op in ("clamp", "clip", "clamp_min"):
        high = None if op == "clamp_min" else values.get(2, values.get("max"))
        data = first if is_zero(values.get(1, values.get("min"))) and (high is None or _is_six(high)) else None
        name = "relu" if high is None else "relu6"
    return (name, data) if data is not None and data.is_floating_point() else None


def _is_six(value: Any) -> bool:
    return isinstance(value, int | float) and value == 6


def selected(op: str, inputs: tuple[int, ...], nodes: Sequence[Node]) -> int | None:
    """The pre-activation of a selection by its own sign, such as `where(x > 0, x, f(x))` and `x * (x > 0)`.

    Args:
        op: Bare name of the function.
        inputs: Nodes of its tensor arguments.
        nodes: The nodes so far.

    Returns:
        The node of `x`, or None where something else is selected or by something else.
    """
    if op not in _SELECTIONS:
        return None
    for mask in inputs:
        condition = nodes[mask]
        while condition.role == "pass":
            condition = nodes[condition.inputs[0]]
        if condition.op not in _COMPARISONS:
            continue
        compared = [index for index in condition.inputs if not is_fixed(nodes[index])]
        if len(compared) != 1 or compared[0] not in inputs:
            continue
        others = [index for index in inputs if index not in (mask, compared[0])]
        if all(_is_made_of(compared[0], index, nodes) for index in others):
            return compared[0]
    return None


def name_of(op: str, preactivation: Tensor, result: Tensor) -> str:
    """What a selection amounts to, by its values.

    Args:
        op: Bare name of the function that selects.
        preactivation: Its input `x`.
        result: Its result.

    Returns:
        "relu", "leaky_relu", "where" for a function that bends below zero; empty for what is no activation, as
        an absolute value or a lower bound above zero.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> name_of("where", x, torch.where(x > 0, x, 0.1 * x)), name_of("where", x, x.abs())
        ('leaky_relu', '')
    """
    if result.shape != preactivation.shape or result.is_meta or not result.is_floating_point():
        return ""
    if torch.equal(result, preactivation.clamp(min=0)):
        return "relu"
    below = preactivation < 0
    if op.startswith("mul") or not torch.equal(result[~below], preactivation[~below]) or not bool(below.any()):
        return ""
    slopes = result[below] / preactivation[below]
    if not torch.allclose(slopes, slopes[0], rtol=1e-3):
        # A constant below zero is a lower bound, not an activation.
        return "" if torch.equal(result[below], result[below][0].expand_as(slopes)) else "where"
    return "leaky_relu" if 0 <= float(slopes[0]) < 1 else ""


def is_fixed(node: Node) -> bool:
    """Whether a node is the same for every example; a single number from outside the model counts as such."""
    return node.role in ("parameter", "constant") or (node.role == "input" and math.prod(node.shape) == 1)


def _is_made_of(source: int, index: int, nodes: Sequence[Node]) -> bool:
    """Whether a node is computed element by element from `source` and constants alone."""
    waiting, seen = [index], {source}
    while waiting and len(seen) < _MAX_STEPS:
        node = nodes[waiting.pop()]
        if node.index in seen or is_fixed(node):
            continue
        if node.role not in _ELEMENTWISE or not node.inputs:
            return False
        seen.add(node.index)
        waiting.extend(node.inputs)
    return not waiting
