"""What planning costs in forward passes without gradients, and how planning and insertion grow with the depth.

python benchmarks/planning.py
"""

import math
import statistics
import time

import torch
import torch.nn.functional as F
from alternating import ratios, show
from torch import nn

from bn_lightning import apply_plan, plan_insertion


class Bottleneck(nn.Module):
    """Three convolutions and a functional add, as in ResNet-50, without norms."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.narrow = nn.Conv2d(channels, width, 1)
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1)
        self.widen = nn.Conv2d(width, 4 * width, 1)
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride) if channels != 4 * width else nn.Identity()

    def forward(self, x):
        h = F.relu(self.conv(F.relu(self.narrow(x))))
        return F.relu(self.shortcut(x) + self.widen(h))


class ResNet50(nn.Module):
    """3, 4, 6 and 3 bottlenecks, stem and head: 50 layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, padding=3)
        blocks, channels = [], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            for number in range(count):
                blocks.append(Bottleneck(channels, 64 * 2**stage, 2 if stage and not number else 1))
                channels = 256 * 2**stage
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Deep(nn.Module):
    """Residual blocks of two layers, so small that what costs is the graph."""

    def __init__(self, layers):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers // 2))
        self.second = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers // 2))

    def forward(self, x):
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(x + second(F.relu(first(x))))
        return x


def plain(layers):
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(8, 8), nn.ReLU())))


def forward(model, x):
    def run():
        with torch.no_grad():
            model(x)

    return run


def seconds(kind, layers):
    """CPU time to plan and to carry the plan out, the median of three; other processes' turns do not count in it."""
    planning, carrying_out = [], []
    for _ in range(3):
        model, x = kind(layers).eval(), torch.randn(4, 8)
        start = time.process_time()
        plan = plan_insertion(model, (x,))
        between = time.process_time()
        apply_plan(model, plan)
        planning.append(between - start)
        carrying_out.append(time.process_time() - between)
    return statistics.median(planning), statistics.median(carrying_out)


if __name__ == "__main__":
    torch.manual_seed(0)
    for shape, rounds in (((2, 3, 32, 32), 15), ((8, 3, 64, 64), 11), ((32, 3, 64, 64), 7)):
        model, x = ResNet50().eval(), torch.randn(shape)
        contenders = {"forward": forward(model, x), "plan": lambda model=model, x=x: plan_insertion(model, (x,))}
        sites = len(plan_insertion(model, (x,)).sites)
        show(f"50 layers, {sites} sites, {shape}", ratios(contenders, rounds=rounds), "forward")
    for kind in (plain, Deep):
        seconds(kind, 50)
        first = seconds(kind, 50)
        print(f"{kind.__name__}: CPU time, and the power of the number of layers that it grew by since 50 layers")
        for layers in (100, 200, 500, 1000):
            found = seconds(kind, layers)
            powers = [math.log(now / then) / math.log(layers / 50) for now, then in zip(found, first, strict=True)]
            both = (f"{t * 1e3:8.1f} ms (power {power:.2f})" for t, power in zip(found, powers, strict=True))
            print(f"  {layers:5} layers  plan {next(both)}  carry out {next(both)}")
