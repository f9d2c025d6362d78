"""Residual and dense networks, with norms and without."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import NORMALISED, Case, inputs


class Bottleneck(nn.Module):
    """Without norms: the shortcut is projected, and the sum goes through an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.spatial, self.expand = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.shortcut, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.reduce(x), inplace=True)
        out = self.expand(F.relu(self.spatial(out), inplace=True))
        out += self.shortcut(x)
        return self.head(F.relu_(out).mean((2, 3)))


class Unnormed(nn.Module):
    """The same order without norms: each activation reads the running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(F.relu(x))
        return self.head(x)


class Dense(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(10, 2, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) if norm else nn.Identity() for width in (4, 7)])
        self.convs = nn.ModuleList([nn.Conv2d(width, 3, 3, padding=1) for width in (4, 7)])

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, dim=1)))))
        return self.head(torch.cat(features, dim=1))


class InvertedResidual(nn.Module):
    """A MobileNetV2 block: its last convolution is linear on purpose."""

    def __init__(self, norm: bool) -> None:
        super().__init__()

        def layer(conv: nn.Conv2d, act: bool = True) -> nn.Module:
            parts = [conv, nn.BatchNorm2d(conv.out_channels)] if norm else [conv]
            return nn.Sequential(*parts, nn.ReLU6(inplace=True)) if act else nn.Sequential(*parts)

        self.expand, self.spatial = layer(nn.Conv2d(4, 8, 1)), layer(nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.project, self.head = layer(nn.Conv2d(8, 4, 1), act=False), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.project(self.spatial(self.expand(x))))


class StochasticDepth(nn.Module):
    """Each sample keeps or drops the branch in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x)), 0.2, self.training)
        branch = self.scale * F.gelu(self.branch(x))
        if self.training:
            branch = branch * (torch.rand(len(x), 1) < 0.8)
        return self.head(x + branch)


IMAGE = inputs((3, 8, 8))
SKIP = (("relu", NORMALISED),)
CASES = (
    Case(
        "bottleneck",
        Bottleneck,
        IMAGE,
        (("reduce", "relu"), ("spatial", "relu"), ("expand|shortcut", "relu")),
        (2, 2, 6),
    ),
    Case("preactivation", Unnormed, IMAGE, (("stem", "relu"), ("stem|convs.0", "relu")), (4, 4)),
    Case("dense", lambda: Dense(False), IMAGE, (("stem", "relu"), ("stem|convs.0", "relu")), (4, 7)),
    Case("dense_normed", lambda: Dense(True), IMAGE, (), (), SKIP),
    Case(
        "mobilenet",
        lambda: InvertedResidual(False),
        inputs((4, 5, 5)),
        (("expand.0", "relu6|hardtanh"), ("spatial.0", "relu6|hardtanh")),
        (8, 8),
    ),
    Case(
        "mobilenet_normed", lambda: InvertedResidual(True), inputs((4, 5, 5)), (), (), (("relu6|hardtanh", NORMALISED),)
    ),
    Case(
        "stochastic_depth",
        StochasticDepth,
        inputs((5,)),
        (("first", "relu"), ("branch", "gelu")),
        (6, 6),
        random=True,
    ),
)
