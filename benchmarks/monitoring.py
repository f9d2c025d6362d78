"""Step time with activations recorded, over the same step without hooks, beside other recorders.

The peers are written out here to compute what their namesakes compute. Recorders act in every step, or
in every tenth; ours sums up a window at the end of each block, or, as the callback does, each step.

    python benchmarks/monitoring.py [mlp|cnn]
"""

import copy
import sys
import tempfile
from collections.abc import Callable

import torch
from alternating import ratios, show
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    """784-3×100-10 with sigmoids, batches of 60."""
    layers: list[nn.Module] = []
    for width in (784, 100, 100):
        layers += [nn.Linear(width, 100), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(100, 10)), torch.rand(60, 784), torch.randint(10, (60,))


def cnn() -> tuple[nn.Module, Tensor, Tensor]:
    """Six convolutions on 32×32 images, batches of 32."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head), torch.rand(32, 3, 32, 32), torch.randint(10, (32,))


class Empty:
    """A hook that does nothing: the floor of any hook."""

    on = True

    def receive(self, layer: str, index: int, x: Tensor, channel_dim: int) -> None:
        if self.on:
            self.record(index, x.detach())

    def record(self, index: int, x: Tensor) -> None:
        pass

    def end_step(self) -> None:
        pass

    def end_block(self) -> None:
        pass


class ReadOnce(Empty):
    """Reads every element once: the limit of any recorder that reads them all."""

    def record(self, index, x):
        self.total = x.sum()


class FastaiLike(Empty):
    """Mean, standard deviation, near-zero share and a histogram, moved off the device each time."""

    def __init__(self):
        self.rows = []

    def record(self, index, x):
        near_zero = (x <= 0.05).long().sum().item() / x.numel()
        self.rows.append((x.mean().item(), x.std().item(), near_zero, x.float().histc(40, 0, 10)))


class BoltsLike(Empty):
    """The whole activation, copied and written as a TensorBoard histogram."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.writer, self.step = SummaryWriter(self.folder.name), 0

    def record(self, index, x):
        self.writer.add_histogram(str(index), x.cpu(), self.step)

    def end_step(self):
        self.step += 1


class ComposerLike(Empty):
    """Norm, mean, skewness and kurtosis of every sample, one `.item()` each."""

    def __init__(self):
        self.rows = []

    def record(self, index, x):
        for value in x:
            centred = value - value.mean()
            variance = centred.square().mean()
            skewness = (centred**3).mean() / variance**1.5
            kurtosis = (centred**4).mean() / variance**2
            norm = torch.linalg.vector_norm(value)
            self.rows.append((norm.item(), value.mean().item(), skewness.item(), kurtosis.item()))


class Ours(Empty):
    """Our recorder; `each_step` sums up after every recorded step instead of once a block."""

    def __init__(self, channels, *, mode="sampled", each_step=False):
        self.recorder = ActivationRecorder(channels, mode=mode)
        self.each_step = each_step

    def receive(self, layer, index, x, channel_dim):
        if self.on:
            self.recorder.receive(layer, index, x, channel_dim)

    def end_step(self):
        if self.each_step and self.on:
            self.end_block()

    def end_block(self):
        for summary in self.recorder.summaries():
            if summary.count:
                summary.percentiles((15, 50, 85))
        self.recorder.reset()


def block(model: nn.Module, x: Tensor, y: Tensor, recorder: Empty, *, steps: int, every: int) -> Callable[[], None]:
    """A function that takes some training steps and records in every n-th."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        for step in range(steps):
            recorder.on = step % every == 0
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            recorder.end_step()
        recorder.end_block()

    return run


def main(name: str, *, steps: int, rounds: int) -> None:
    """Print a table for one model and both schedules."""
    torch.manual_seed(0)
    model, x, y = {"mlp": mlp, "cnn": cnn}[name]()
    sites = plan_insertion(model, (x,)).sites
    channels = [site.channels for site in sites]
    recorders: dict[str, Callable[[], Empty]] = {
        "empty hooks": Empty,
        "read every element once": ReadOnce,
        "ours, sampled": lambda: Ours(channels),
        "ours, sampled, summed up each step": lambda: Ours(channels, each_step=True),
        "ours, exact": lambda: Ours(channels, mode="exact"),
        "fastai-like": FastaiLike,
        "Bolts-like": BoltsLike,
        "Composer-like": ComposerLike,
    }
    for every in (1, 10):
        contenders = {"no hooks": block(copy.deepcopy(model), x, y, Empty(), steps=steps, every=every)}
        for title, make in recorders.items():
            hooked, recorder = copy.deepcopy(model), make()
            tap_preactivations(hooked, sites, recorder.receive)
            contenders[title] = block(hooked, x, y, recorder, steps=steps, every=every)
        found = ratios(contenders, rounds=rounds)
        show(f"{name}, {steps} steps a block, recorded every {every}", found, "no hooks")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or ("mlp", "cnn"):
        main(chosen, **{"mlp": {"steps": 50, "rounds": 40}, "cnn": {"steps": 10, "rounds": 8}}[chosen])
