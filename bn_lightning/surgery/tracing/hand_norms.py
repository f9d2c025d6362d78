"""Recognise a norm that a model brings as a module of its own, such as the RMS norm of a language model."""

from collections.abc import Sequence

from torch import nn

from bn_lightning.surgery.tracing.graph import Node

_DEVIATIONS = frozenset("rsqrt sqrt std var std_mean var_mean".split())
_MEANS = frozenset("mean sum std var std_mean var_mean norm".split())
_CENTRING = frozenset("sub std var std_mean var_mean".split())
_WEIGHING = ("affine", "matmul", "nonlinearity", "norm", "loss")


def norm_kind(module: nn.Module, inner: Sequence[Node]) -> str:
    """Which norm a module is that keeps the shape of its input, by its name and its arithmetic.

    Args:
        module: The module.
        inner: Its operations.

    Returns:
        "batch", "layer", "group", "instance" or "rms"; empty where its class is not called a norm, it holds other
        modules, or it does not divide by a deviation.
    """
    name = type(module).__name__.lower()
    ops = {node.op for node in inner}
    is_norm = "norm" in name and ops & _DEVIATIONS and ops & _MEANS
    if not is_norm or any(node.role in _WEIGHING for node in inner) or any(True for _ in module.children()):
        return ""
    for kind in ("batch", "group", "instance"):
        if kind in name:
            return kind
    return "layer" if ops & _CENTRING else "rms"
