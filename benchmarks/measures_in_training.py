"""What CovariateShiftMonitor and LossSmoothnessMonitor add to the time of training.

A Trainer trains a network on random images in memory, with a monitor that is due every tenth step and without one, by
turns, in the processor time of the thread; the first ten steps are left out. Added is time with over time without,
less 1. The limit is 1.1 × passes × (samples probed / batch) / interval: one pass is a forward and backward, and
gradient shift takes one for each layer but the first and one for the noise, smoothness one for each of four sizes and
one for the gradient.

Run: ``python benchmarks/measures_in_training.py``.
"""

import warnings

import pytorch_lightning as pl
import torch
from measures import loss_fn, mlp, vgg_like
from monitoring_cost import Clock
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.training import quiet_lightning
from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor

INTERVAL, BATCH = 10, 64  # the clock leaves out the first ten steps, one interval
ROUNDS = 12
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.example_input_array = net, x

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return loss_fn(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def seconds(make, shape: tuple[int, ...], intervals: int, monitor: pl.Callback | None) -> float:
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    loader = DataLoader(TensorDataset(x, y), batch_size=None, sampler=[slice(None)] * (INTERVAL * intervals + 1))
    clock = Clock()
    callbacks = [clock] if monitor is None else [monitor, clock]
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **QUIET)
    trainer.fit(Classifier(make(), x), loader)
    return clock.seconds()


def added(title: str, make, shape: tuple[int, ...], intervals: int) -> None:
    layers = [name for name, part in make().named_parameters() if part.dim() > 1]
    few = [f"net.{name.removesuffix('.weight')}" for name in layers[-2:]]
    shared = {"every_n_steps": INTERVAL, "figures": False, "warn": False}
    gradients = {**shared, "activations": False}
    smoothness = {**shared, "step_sizes": (0.01, 0.02, 0.05, 0.1), "normalised": False, "probe_size": BATCH}
    contenders = {
        "gradient shift": (len(layers), lambda: CovariateShiftMonitor(**gradients)),
        "gradient shift of two layers": (3, lambda: CovariateShiftMonitor(**gradients, layers=few)),
        "smoothness": (5, lambda: LossSmoothnessMonitor(**smoothness)),
        "again (noise)": (0, lambda: None),
    }
    names = ["without", *contenders]
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            monitor = None if name == "without" else contenders[name][1]()
            times[name].append(seconds(make, shape, intervals, monitor))
    reference = torch.tensor(times["without"])
    print(f"{title}, {len(layers)} affine layers: a step takes {float(reference.median()) * 1e3:.3f} ms")
    generator = torch.Generator().manual_seed(0)
    for name, (passes, _) in contenders.items():
        more = torch.tensor(times[name]) / reference - 1
        draws = more[torch.randint(ROUNDS, (2000, ROUNDS), generator=generator)].median(1).values
        low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
        limit = f"limit {1.1 * passes / INTERVAL:.3f}" if passes else ""
        print(f"  {name:30} {float(more.median()):+.3f}  [{low:+.3f}, {high:+.3f}]  {limit}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    with quiet_lightning():
        added("VGG-like", vgg_like, (3, 32, 32), intervals=3)
        added("MLP", mlp, (784,), intervals=20)
