"""Models as data: what a test inserts norms into, and where a norm belongs by hand.

`inserted` names the sites that get a norm with placement "before", in the order of the forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inserted: tuple[str, ...]
    channels: tuple[int, ...]

    def example(self, batch: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(batch)
        return (torch.randn(batch, *self.shape, generator=generator, dtype=dtype),)


class FunctionalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.tanh(self.second(x))
        return self.third(x)


class MethodMLP(FunctionalMLP):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()
        return self.third(self.second(x).sigmoid())


class SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.act(self.second(self.act(self.first(x))).view(x.shape[0], -1)))


class SharedLayer(nn.Module):
    """One linear layer used in two branches, each followed by its own nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x)) + F.elu(self.layer(-x)))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.relu(out)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([ResidualBlock(), ResidualBlock()])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class FunctionalResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(F.gelu(self.first(x)))
        return self.head(F.relu(x))


class CalledTwice(nn.Module):
    """A sub-module with functional calls, used twice: one norm serves both visits."""

    def __init__(self) -> None:
        super().__init__()
        self.block = FunctionalResidual()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.block(2 * x)


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class Tokens(nn.Module):
    """Channels on the last axis of (batch, time, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class TransposedConv(nn.Module):
    """A convolution whose output is transposed before the nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x).transpose(1, 2)))


def sequential(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


CASES = (
    Case(
        "mlp",
        sequential(lambda: nn.Linear(5, 7), nn.ReLU, lambda: nn.Linear(7, 6), nn.Sigmoid, lambda: nn.Linear(6, 3)),
        (5,),
        ("1", "3"),
        (7, 6),
    ),
    Case("mlp_functional", FunctionalMLP, (5,), ("relu_0", "tanh_0"), (7, 6)),
    Case("mlp_methods", MethodMLP, (5,), ("relu_0", "sigmoid_0"), (7, 6)),
    Case("shared_activation", SharedActivation, (5,), ("act", "act_1"), (7, 6)),
    Case("shared_layer", SharedLayer, (5,), ("relu_0", "elu_0"), (5, 5)),
    Case(
        "conv1d",
        sequential(
            lambda: nn.Conv1d(2, 4, 3), nn.ELU, lambda: nn.Conv1d(4, 3, 3), nn.Flatten, lambda: nn.Linear(12, 2)
        ),
        (2, 8),
        ("1",),
        (4,),
    ),
    Case(
        "conv2d",
        sequential(
            lambda: nn.Conv2d(3, 4, 3), nn.LeakyReLU, lambda: nn.Conv2d(4, 5, 3), nn.PReLU, lambda: nn.Conv2d(5, 1, 1)
        ),
        (3, 8, 8),
        ("1", "3"),
        (4, 5),
    ),
    Case(
        "conv3d",
        sequential(lambda: nn.Conv3d(2, 3, 2), nn.Softplus, lambda: nn.Conv3d(3, 1, 2)),
        (2, 4, 4, 4),
        ("1",),
        (3,),
    ),
    Case(
        "conv_transpose1d",
        sequential(lambda: nn.ConvTranspose1d(3, 4, 2), nn.Tanh, lambda: nn.Conv1d(4, 2, 1)),
        (3, 5),
        ("1",),
        (4,),
    ),
    Case(
        "conv_transpose2d",
        sequential(
            lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU6, nn.Dropout, lambda: nn.ConvTranspose2d(4, 2, 2)
        ),
        (3, 4, 4),
        ("1",),
        (4,),
    ),
    Case(
        "conv_transpose3d",
        sequential(lambda: nn.ConvTranspose3d(2, 3, 2), nn.SELU, lambda: nn.Conv3d(3, 1, 2)),
        (2, 3, 3, 3),
        ("1",),
        (3,),
    ),
    Case(
        "residual",
        ResidualNet,
        (3, 8, 8),
        ("relu_0", *(f"blocks.{i}.relu{suffix}" for i in (0, 1) for suffix in ("", "_1"))),
        (4, 4, 4, 4, 4),
    ),
    Case("residual_functional", FunctionalResidual, (6,), ("gelu_0", "relu_0"), (6, 6)),
    Case("called_twice", CalledTwice, (6,), ("block.gelu_0", "block.relu_0"), (6, 6)),
    Case("user_mish", sequential(lambda: nn.Linear(5, 4), Mish, lambda: nn.Linear(4, 2)), (5,), ("1",), (4,)),
    Case("tokens", Tokens, (9, 5), ("act",), (8,)),
    Case("transposed_conv", TransposedConv, (3, 9), ("relu_0",), (6,)),
    Case(
        "pool_between",
        sequential(lambda: nn.Conv2d(3, 4, 3), lambda: nn.MaxPool2d(2), nn.ReLU, nn.Flatten, lambda: nn.Linear(36, 2)),
        (3, 8, 8),
        ("2",),
        (4,),
    ),
)
