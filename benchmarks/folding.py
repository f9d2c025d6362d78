"""Evaluation time of folded nets over the same nets that never had norms.

python benchmarks/folding.py

Norms are inserted, so a net whose norms were all folded has to be the plain net again. "before" puts them
before the nonlinearity, "after" behind it, where they go into the next layer.
Hand-written norms leave an `nn.Identity` behind, and so does the plain net beside them.
"""

import copy
import warnings
from itertools import pairwise

import torch
import torch.nn.functional as F
from alternating import ratios, show
from torch import nn

from bn_lightning import insert_batch_norm
from bn_lightning.errors import FoldingWarning
from bn_lightning.surgery.folding.fold import fold_batch_norm


class MLP(nn.Module):
    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, width), *(nn.Linear(width, width) for _ in range(4))])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64, 128)
        self.layers = nn.ModuleList([nn.Conv2d(i, o, 3) for i, o in pairwise(widths)])
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList([nn.Linear(64, 256) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(256, 64) for _ in range(3)])

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(x)))
        return x


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, norm: bool) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm else lambda channels: nn.Identity()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1),
            make(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            make(channels),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), make(channels)) if stride > 1 else None

    def forward(self, x):
        return torch.relu(self.path(x) + (x if self.skip is None else self.skip(x)))


def resnet18(norm: bool) -> nn.Module:
    make = nn.BatchNorm2d if norm else lambda channels: nn.Identity()
    blocks = [nn.Conv2d(3, 64, 3, 1, 1), make(64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(Block(channels, width, stride, norm))
        channels = width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def runner(model, x):
    @torch.no_grad()
    def run():
        return model(x)

    return run


def compare(title, plain, normed, x, rounds, inner):
    with torch.no_grad():  # statistics of its own for each norm
        normed(torch.randn(8, *x.shape[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoldingWarning)
        folded = fold_batch_norm(normed, (x,))
    kept = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    contenders = {
        "without norms": runner(plain.eval(), x),
        f"folded ({kept} norms kept)": runner(folded, x),
        "not folded": runner(normed.eval(), x),
    }
    show(title, ratios(contenders, rounds=rounds, inner=inner), "without norms")


if __name__ == "__main__":
    for kind, shape, placement, rounds, inner in (
        (MLP, (1, 64), "before", 80, 100),
        (MLP, (32, 64), "before", 80, 30),
        (MLP, (32, 64), "after", 80, 30),
        (ConvNet, (8, 3, 16, 16), "before", 60, 5),
        (ConvNet, (8, 3, 16, 16), "after", 60, 5),
        (Tokens, (8, 32, 64), "before", 60, 10),
    ):
        torch.manual_seed(0)
        x, plain = torch.randn(shape), kind()
        normed = copy.deepcopy(plain)
        plan = insert_batch_norm(normed, (torch.randn(8, *shape[1:]),), placement=placement)
        compare(f"{kind.__name__} {shape}, {len(plan.inserted)} norms {placement}", plain, normed, x, rounds, inner)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    compare("ResNet-18 (4, 3, 32, 32), 20 norms by hand", resnet18(norm=False), resnet18(norm=True), x, 30, 1)
