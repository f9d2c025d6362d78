"""How often the monitor warns of networks that train well, and whether it warns of those that do not.

Each network is trained on the embedded digits by a Trainer with an ActivationMonitor, whose warnings are counted by
kind: one run is one network and seed, in the exact mode for even seeds and the sampled one for odd ones. "Most dead" is
the largest share of a layer's channels that were never active, of the least in three recorded steps in a row, where all
elements were read. Run: ``python benchmarks/monitor_warnings.py [--seeds 10] [--steps 300]``.
"""

import argparse
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import StatisticsWarning

KINDS = {
    "Non-finite": "non-finite",
    "were never active": "dead",
    "hardly any": "dead",
    "saturate": "saturated",
    "with depth": "depth",
    "running statistics of the norm": "lag",
    "in their running statistics": "broken norm",
}


def mlp(activation: type[nn.Module], depth: int = 3, width: int = 100, *, norm: float | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (64, *[width] * (depth - 1)):
        layers.append(nn.Linear(inputs, width))
        if norm is not None:
            layers.append(nn.BatchNorm1d(width, momentum=norm))
        layers.append(activation())
    return nn.Sequential(*layers, nn.Linear(width, 10))


def kaiming(model: nn.Module, gain: float = 1.0) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
            module.weight.data *= gain
    return model


def biased(model: nn.Module, bias: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features != 10:
            nn.init.constant_(module.bias, bias)
    return model


def cnn(*, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


class Residual(nn.Module):
    """Four blocks of two convolutions with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(8))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 8, 8)).relu()
        for block in range(0, 8, 2):
            inner = self.norms[block](self.convs[block](x)).relu()
            x = (x + self.norms[block + 1](self.convs[block + 1](inner))).relu()
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """The rows of an image are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, activation=F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.1)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, batch_first=True)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


def from_other_data(model: nn.Module) -> nn.Module:
    """Norms as a checkpoint brings them that was trained on differently scaled images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(2.0)
            module.running_var.fill_(9.0)
            module.num_batches_tracked.fill_(10_000)
    return model


@dataclass(frozen=True)
class Case:
    """A network and how it is trained; `expected` is what shall be warned of, empty for nothing."""

    name: str
    make: Callable[[], nn.Module]
    learning_rate: float
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    expected: tuple[str, ...] = ()
    batch_size: int = 60


ADAM = torch.optim.Adam
HEALTHY = [
    Case("MLP, sigmoid, 3 layers", lambda: mlp(nn.Sigmoid), 3e-3, ADAM),
    Case("MLP, sigmoid, norm", lambda: mlp(nn.Sigmoid, norm=0.1), 0.5),
    Case("MLP, tanh", lambda: mlp(nn.Tanh), 0.1),
    Case("MLP, ReLU", lambda: mlp(nn.ReLU), 0.3),
    Case("MLP, ReLU, Adam", lambda: mlp(nn.ReLU), 3e-3, ADAM),
    Case("MLP, ReLU, norm", lambda: mlp(nn.ReLU, norm=0.1), 0.1),
    Case("MLP, ReLU, norm, Adam", lambda: mlp(nn.ReLU, norm=0.1), 3e-3, ADAM),
    Case("MLP, ReLU, norm of momentum 0.01", lambda: mlp(nn.ReLU, norm=0.01), 0.05),
    Case("MLP, ReLU, norm, batches of 8", lambda: mlp(nn.ReLU, norm=0.1), 0.02, batch_size=8),
    Case("MLP, GELU, Adam", lambda: mlp(nn.GELU), 3e-3, ADAM),
    Case("MLP, GELU, norm", lambda: mlp(nn.GELU, norm=0.1), 0.1),
    Case("MLP, ReLU, 12 layers, Kaiming", lambda: kaiming(mlp(nn.ReLU, 12)), 0.01),
    Case("MLP, ReLU, 12 layers, torch's initialisation, norm", lambda: mlp(nn.ReLU, 12, norm=0.1), 0.05),
    Case("CNN, Adam", lambda: cnn(norm=False), 3e-3, ADAM),
    Case("CNN, norm", lambda: cnn(norm=True), 0.1),
    Case("residual CNN, norm", Residual, 0.1),
    Case("residual CNN, norm, Adam", Residual, 1e-2, ADAM),
    Case("transformer", Transformer, 1e-3, ADAM),
    Case("LSTM", Recurrent, 3e-3, ADAM),
]
SICK = [
    Case("MLP, ReLU, learning rate 10", lambda: mlp(nn.ReLU), 10.0, expected=("dead", "non-finite")),
    Case("CNN, learning rate 10", lambda: cnn(norm=False), 10.0, expected=("dead", "non-finite")),
    Case("MLP, sigmoid, learning rate 100", lambda: mlp(nn.Sigmoid), 100.0, expected=("saturated",)),
    Case("MLP, tanh, weights 20 times too large", lambda: kaiming(mlp(nn.Tanh), 20.0), 0.1, expected=("saturated",)),
    Case("MLP, ReLU, biases of -10", lambda: biased(mlp(nn.ReLU), -10.0), 0.1, expected=("dead",)),
    Case("MLP, sigmoid, 10 layers", lambda: mlp(nn.Sigmoid, 10), 0.1, expected=("depth",)),
    Case("MLP, ReLU, 12 layers, weights 3 times too large", lambda: kaiming(mlp(nn.ReLU, 12), 3.0), 1e-9,
         expected=("depth",)),
    Case("MLP, ReLU, 12 layers, weights 3 times too small", lambda: kaiming(mlp(nn.ReLU, 12), 1 / 3), 0.1,
         expected=("depth",)),
    Case("MLP, norm from other data, momentum 0.001", lambda: from_other_data(mlp(nn.ReLU, norm=0.001)), 0.01,
         expected=("lag",)),
    Case("MLP, ReLU, norm of momentum 0.05, SGD at 10", lambda: mlp(nn.ReLU, norm=0.05), 10.0,
         expected=("lag",)),
]  # fmt: skip


class Digits(pl.LightningModule):
    """Trains a network on digits."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__()
        self.model, self.case = model, case
        self.example_input_array = torch.zeros(4, 64)
        self.right: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        y = self(batch[0])
        self.right.append(float((y.argmax(1) == batch[1]).float().mean()))
        return F.cross_entropy(y, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.case.optimizer(self.parameters(), lr=self.case.learning_rate)


def run(case: Case, seed: int, *, steps: int) -> tuple[set[str], float, float]:
    """The kinds of warnings of one run, the training accuracy of its last fifth and the most dead channels."""
    pl.seed_everything(seed, verbose=False)
    module = Digits(case.make(), case)
    monitor = ActivationMonitor(every_n_steps=max(1, steps // 60), mode="sampled" if seed % 2 else "exact")
    trainer = pl.Trainer(
        callbacks=[monitor], max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=DigitsData(batch_size=case.batch_size))
    told = [str(one.message) for one in caught if issubclass(one.category, StatisticsWarning)]
    kinds = {next((kind for words, kind in KINDS.items() if words in message), message) for message in told}
    last = module.right[-max(1, len(module.right) // 5) :]
    table = monitor.table()
    dead = table[table["quantity"] == "preactivation_dead"].pivot(index="step", columns="layer", values="value")
    most = float(dead.rolling(3).min().max().max()) if len(dead) else float("nan")
    return kinds, sum(last) / len(last), most


def measure(cases: list[Case], title: str, seeds: int, steps: int) -> None:
    print(f"\n| {title} | accuracy | most dead | warned of, of {seeds} runs |\n| --- | --- | --- | --- |")
    for case in cases:
        counts: Counter[str] = Counter()
        accuracies, most = [], []
        for seed in range(seeds):
            kinds, accuracy, dead = run(case, seed, steps=steps)
            accuracies.append(accuracy)
            most.append(0.0 if math.isnan(dead) else dead)
            counts.update(kinds)
            if case.expected and not kinds & set(case.expected):
                counts["MISSED"] += 1
        told = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())) or "nothing"
        print(
            f"| {case.name} | {min(accuracies):.2f} to {max(accuracies):.2f} | {max(most):.2f} | {told} |", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    measure(HEALTHY, "trains well", options.seeds, options.steps)
    measure(SICK, "does not", options.seeds, options.steps)
