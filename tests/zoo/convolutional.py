"""Convolutional networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import GATE, HEAD, Case, inputs


def depthwise_separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU6(),
        nn.Conv2d(4, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.GELU(),
        nn.Conv2d(6, 1, 1),
    )


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 5, 3), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 1)
    )


def generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(6, 5, 4),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 4, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    )


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 5, 3, padding=1))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(3, 3, 1))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [F.relu(branch(x)) for branch in (self.one, self.three, self.pool)]
        return self.head(torch.cat(branches, dim=1).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, gate=torch.sigmoid) -> None:
        super().__init__()
        self.conv, self.reduce, self.expand = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.head, self.gate = nn.Conv2d(6, 1, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        scale = self.gate(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head(x * scale)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.join, self.head = (
            nn.ConvTranspose2d(6, 4, 2, 2),
            nn.Conv2d(8, 5, 3, padding=1),
            nn.Conv2d(5, 1, 1),
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.act(self.down(x))
        deep = self.act(self.deep(F.max_pool2d(skip, 2)))
        joined = self.act(self.join(torch.cat([skip, self.up(deep)], dim=1)))
        return torch.sigmoid(self.head(joined))


class Pyramid(nn.Module):
    """Top-down sums between two scales; the activation comes after the upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.lateral, self.top, self.out = nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.relu(self.fine(x))
        top = self.top(F.relu(self.coarse(fine)))
        merged = F.relu(self.lateral(fine) + F.interpolate(top, scale_factor=2.0))
        return self.out(merged), self.out(top)


IMAGE = inputs((3, 8, 8))
SQUEEZE = (("conv", "hardswish"), ("reduce", "relu"))
CASES = (
    Case(
        "depthwise_separable",
        depthwise_separable,
        inputs((4, 8, 8)),
        (("0", "relu6|hardtanh"), ("2", "relu6|hardtanh"), ("4", "gelu")),
        (4, 6, 6),
    ),
    Case("discriminator", discriminator, IMAGE, (("0", "leaky_relu"), ("2", "leaky_relu")), (4, 5)),
    Case("generator", generator, inputs((6, 1, 1)), (("0", "relu"), ("2", "relu")), (5, 4), (("tanh", HEAD),)),
    Case(
        "inception",
        Inception,
        IMAGE,
        (("one", "relu"), ("three.0", "relu"), ("three.2", "relu"), ("pool.1", "relu")),
        (4, 2, 5, 3),
    ),
    Case("squeeze_excite", SqueezeExcite, IMAGE, SQUEEZE, (6, 2), (("sigmoid", GATE),)),
    Case(
        "hard_squeeze_excite",
        lambda: SqueezeExcite(F.hardsigmoid),
        IMAGE,
        SQUEEZE,
        (6, 2),
        (("hardsigmoid", GATE),),
    ),
    Case("unet", UNet, IMAGE, (("down", "relu"), ("deep", "relu"), ("join", "relu")), (4, 6, 5), (("sigmoid", HEAD),)),
    Case(
        "feature_pyramid",
        Pyramid,
        IMAGE,
        (("fine", "relu"), ("coarse", "relu"), ("lateral|top", "relu")),
        (4, 6, 5),
    ),
)
