"""Activations spelt out in arithmetic, as functions of one tensor."""

import torch
from torch import Tensor

from zoo.basics import Perceptron
from zoo.case import Case, inputs


def clamp(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def maximum(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x))


def where(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def masked(x: Tensor) -> Tensor:
    return x * (x > 0)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def clipped(x: Tensor) -> Tensor:
    return torch.clamp(x, 0.0, 6.0)


def form(name: str, act, op: str) -> Case:
    """A perceptron whose activation is spelt out: its layers' outputs are normalised."""
    labels = (("first", op), ("second", op))
    return Case(name, lambda: Perceptron(act), inputs((5,)), labels, (7, 6), handwritten=True)


CASES = (
    form("relu_as_clamp", clamp, "relu"),
    form("relu_as_maximum", maximum, "relu"),
    form("relu_as_where", where, "relu"),
    form("relu_as_product", masked, "relu"),
    form("leaky_relu_as_where", leaky, "leaky_relu"),
    form("relu6_as_clamp", clipped, "relu6"),
)
