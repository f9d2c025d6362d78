"""Parametrized weights, and activations that torch cannot see through."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from zoo.case import NO_AFFINE, Case, inputs


class Positive(nn.Module):
    """Keeps a weight positive: one tensor in, the same shape out, and still no activation of the network."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


class Monotone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 1)
        parametrize.register_parametrization(self.first, "weight", Positive())
        parametrize.register_parametrization(self.second, "weight", Positive())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def critic() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 4, stride=2)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(4, 5, 3)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        spectral_norm(nn.Linear(5, 1)),
    )


def weight_normed() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Linear(5, 7)), nn.ReLU(), weight_norm(nn.Linear(7, 6)), nn.SELU(), orthogonal(nn.Linear(6, 2))
    )


class SharedWeight(nn.Module):
    """Two layers hold one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(F.relu(self.first(x)))))


class SquareRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0) ** 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 2 * x.clamp(min=0)


class OpaqueFunction(nn.Module):
    """An autograd function called in the forward hides its arithmetic: nothing there is a site."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(SquareRelu.apply(self.first(x)))))


class OpaqueUnit(nn.Module):
    """The same function as a module without parameters, one tensor in and the same shape out: a unit."""

    def forward(self, x: Tensor) -> Tensor:
        return SquareRelu.apply(x)


class FakeQuantize(nn.Module):
    """Rounds with a straight-through gradient; the shape of a unit, but no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(8 * x) / 8 - x).detach()


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 3, 3), nn.Linear(48, 6), nn.Linear(6, 2)
        self.quantize = FakeQuantize()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quantize(F.relu(self.conv(self.quantize(x))))
        return self.head(self.quantize(F.hardtanh(self.quantize(self.hidden(x.flatten(1))))))


class Binary(nn.Module):
    """Signs forward, the gradient of hardtanh backward: only the hardtanh is a site."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.first(x))
        return self.head(x + (torch.sign(x) - x).detach())


CASES = (
    Case("monotone", Monotone, inputs((5,)), (("first", "tanh"),), (7,), (("softplus", NO_AFFINE),)),
    Case(
        "spectral_norm",
        critic,
        inputs((3, 8, 8)),
        (("0", "leaky_relu"), ("2", "leaky_relu")),
        (4, 5),
    ),
    Case("weight_norm", weight_normed, inputs((5,)), (("0", "relu"), ("2", "selu")), (7, 6)),
    Case("shared_weight", SharedWeight, inputs((6,)), (("first", "relu"), ("second", "tanh")), (6, 6)),
    Case("opaque_function", OpaqueFunction, inputs((5,)), (("second", "relu"),), (6,)),
    Case(
        "opaque_unit",
        lambda: nn.Sequential(nn.Linear(5, 7), OpaqueUnit(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)),
        inputs((5,)),
        (("0", "opaqueunit"), ("2", "relu")),
        (7, 6),
    ),
    Case("fake_quantised", Quantised, inputs((1, 6, 6)), (("conv", "relu"), ("hidden", "hardtanh")), (3, 6)),
    Case("binary_network", Binary, inputs((5,)), (("first", "hardtanh"),), (8,)),
)
