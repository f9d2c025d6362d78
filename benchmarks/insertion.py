"""Step time of a model with inserted norms over the same model with batch norm written out by hand.

python benchmarks/insertion.py
"""

import torch
import torch.nn.functional as F
from alternating import ratios, show
from torch import nn

from bn_lightning import insert_batch_norm


class MLP(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(784, 100), nn.Linear(100, 100), nn.Linear(100, 100)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(100) if norm else nn.Identity() for _ in range(3)])
        self.head = nn.Linear(100, 10)

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.sigmoid(norm(layer(x)))
        return self.head(x)


class Residual(nn.Module):
    """Four residual blocks with functional ReLUs: half of the sites need the owner's forward."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)])
        self.second = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(32) if norm else nn.Identity() for _ in range(9)])
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norms[8](self.stem(x)))
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            h = F.relu(self.norms[2 * i](first(x)))
            x = F.relu(self.norms[2 * i + 1](x + second(h)))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Channels on the last axis; by hand the usual transposes around BatchNorm1d."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(64, 256), nn.Linear(256, 64), nn.BatchNorm1d(256) if norm else None

    def forward(self, x):
        h = self.up(x)
        if self.norm is not None:
            h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(h))


def step(model, x):
    def run():
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return run


if __name__ == "__main__":
    for kind, shape, rounds, inner in (
        (MLP, (60, 784), 60, 40),
        (Residual, (32, 3, 16, 16), 40, 2),
        (Tokens, (32, 64, 64), 40, 5),
    ):
        torch.manual_seed(0)
        x = torch.randn(*shape)
        written, inserted = kind(norm=True), kind(norm=False)
        plan = insert_batch_norm(inserted, (x,))
        found = ratios({"written by hand": step(written, x), "inserted": step(inserted, x)}, rounds=rounds, inner=inner)
        show(f"{kind.__name__}, {len(plan.inserted)} norms, {tuple(shape)}", found, "written by hand")
