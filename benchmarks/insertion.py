"""Step time of a model with inserted norms over the fastest way to write the same norms by hand.

python benchmarks/insertion.py             each step in eager mode
python benchmarks/insertion.py --compiled  both sides by torch.compile, which needs a C++ compiler

The fastest is without the biases that the norms cancel; beside it stands the same with them, which insertion
freezes and keeps. A step is a forward and a backward pass.
"""

import sys

import torch
import torch.nn.functional as F
from alternating import ratios, show
from torch import nn

from bn_lightning import insert_batch_norm


class MLP(nn.Module):
    def __init__(self, norm, bias=True):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 100, bias=bias) for width in (784, 100, 100))
        self.norms = nn.ModuleList(nn.BatchNorm1d(100) for _ in range(3)) if norm else None
        self.head = nn.Linear(100, 10)

    def forward(self, x):
        if self.norms is None:
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
        else:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = torch.sigmoid(norm(layer(x)))
        return self.head(x)


class VGG11(nn.Sequential):
    """The convolutions of VGG-11, for images of 32², with a single linear layer on top."""

    def __init__(self, norm, bias=True):
        parts, channels = [], 3
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
            if width == "pool":
                parts.append(nn.MaxPool2d(2))
                continue
            parts.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
            parts += [nn.BatchNorm2d(width)] if norm else []
            parts.append(nn.ReLU(inplace=True))
            channels = width
        super().__init__(*parts, nn.Flatten(), nn.Linear(512, 10))


class Residual(nn.Module):
    """Four residual blocks with functional ReLUs and adds: half of the sites need the owner's forward."""

    def __init__(self, norm, bias=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=bias)
        self.first = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=bias) for _ in range(4))
        self.second = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=bias) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(9)) if norm else None
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        if self.norms is None:
            x = F.relu(self.stem(x))
            for first, second in zip(self.first, self.second, strict=True):
                x = F.relu(x + second(F.relu(first(x))))
        else:
            x = F.relu(self.norms[8](self.stem(x)))
            for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
                h = F.relu(self.norms[2 * i](first(x)))
                x = F.relu(self.norms[2 * i + 1](x + second(h)))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A feed-forward block of a transformer, (B, T, C) with channels last; by hand flattened to (B·T, C)."""

    def __init__(self, norm, bias=True):
        super().__init__()
        self.up, self.down = nn.Linear(64, 256, bias=bias), nn.Linear(256, 64)
        self.norm = nn.BatchNorm1d(256) if norm else None

    def forward(self, x):
        h = self.up(x)
        return x + self.down(F.gelu(h if self.norm is None else self.normalised(h)))

    def normalised(self, h):
        return self.norm(h.flatten(0, 1)).view_as(h)


class Transposed(Tokens):
    """The same by the usual transposes."""

    def normalised(self, h):
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


def step(model, x, compiled):
    run_model = torch.compile(model) if compiled else model

    def run():
        model.zero_grad(set_to_none=True)
        run_model(x).square().mean().backward()

    return run


def same_parameters(model, other):
    return sorted(p.shape for p in model.parameters()) == sorted(p.shape for p in other.parameters())


if __name__ == "__main__":
    compiled = "--compiled" in sys.argv[1:]
    for kind, shape, rounds, inner in (
        (MLP, (60, 784), 60, 40),
        (VGG11, (16, 3, 32, 32), 30, 1),
        (Residual, (32, 3, 16, 16), 40, 2),
        (Tokens, (32, 64, 64), 40, 5),
    ):
        torch.manual_seed(0)
        torch.compiler.reset()
        x = torch.randn(*shape)
        fastest, with_biases, inserted = kind(norm=True, bias=False), kind(norm=True), kind(norm=False)
        plan = insert_batch_norm(inserted, (x,))
        assert same_parameters(inserted, with_biases)
        written = {"by hand, no biases": fastest, "by hand, with biases": with_biases}
        if kind is Tokens:
            written["by hand, by transposes"] = Transposed(norm=True, bias=False)
        contenders = {name: step(model, x, compiled) for name, model in {**written, "inserted": inserted}.items()}
        found = ratios(contenders, rounds=rounds, inner=inner)
        title = f"{kind.__name__}, {len(plan.inserted)} norms, {tuple(shape)}{', compiled' if compiled else ''}"
        show(title, found, "by hand, no biases")
