"""What recording costs apart from the step: inside hooks, in a Trainer, in memory, and by the number of layers.

    python benchmarks/monitoring_cost.py [hooks|layers|memory|trainer]

`hooks` and `layers` give microseconds of thread time, `trainer` the ratio of a step's time with ActivationMonitor to
one without, from turns in one process, with A against A beside it.
"""

import resource
import statistics
import sys
import time
import tracemalloc
import warnings

import pytorch_lightning as pl
import torch
from monitoring import cnn, mlp
from torch import Tensor, nn

from bn_lightning.callbacks import ActivationMonitor
from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations

MODES = ("sampled", "exact")


def inside_hooks(model: nn.Module, x: Tensor, *, mode: str, steps: int) -> tuple[list[float], float]:
    """Median microseconds of thread time in each layer's hook, and a layer's share of summing up after each step."""
    sites = plan_insertion(model, (x,)).sites
    recorder = ActivationRecorder([site.channels for site in sites], mode=mode)
    spent: list[list[float]] = [[] for _ in sites]
    summing = []

    def receive(layer: str, index: int, activation: Tensor, channel_dim: int) -> None:
        start = time.thread_time()
        recorder.receive(layer, index, activation, channel_dim)
        spent[index].append(time.thread_time() - start)

    with tap_preactivations(model, sites, receive):
        for _ in range(steps):
            model(x)
            start = time.thread_time()
            for summary in recorder.summaries():
                summary.percentiles((15, 50, 85))
            recorder.reset()
            summing.append(time.thread_time() - start)
    return [statistics.median(times) * 1e6 for times in spent], statistics.median(summing) / len(sites) * 1e6


def hooks() -> None:
    """Microseconds inside hooks, layer by layer."""
    for name, (model, x, _), steps in (("mlp", mlp(), 300), ("cnn", cnn(), 20)):
        for mode in MODES:
            each, summing = inside_hooks(model, x, mode=mode, steps=steps)
            shown = " ".join(f"{microseconds:.1f}" for microseconds in each)
            print(f"{name}, {mode}: {shown} us in the hooks; summing up each step {summing:.0f} us a layer")


def layers() -> None:
    """Microseconds a layer, by the number of layers."""
    for mode in MODES:
        for depth in (10, 50, 150):
            model = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(100, 100), nn.Sigmoid())))
            each, summing = inside_hooks(model, torch.rand(60, 100), mode=mode, steps=3000 // depth)
            print(f"{depth:4} layers, {mode}: {statistics.mean(each):.1f} us a layer in hooks, {summing:.0f} to sum up")


def memory() -> None:
    """What is allocated after so many recorded steps of one window, and after windows of one step."""
    model, x, _ = mlp()
    sites = plan_insertion(model, (x,)).sites
    for mode in MODES:
        for window in ("one window", "a window each step"):
            recorder = ActivationRecorder([site.channels for site in sites], mode=mode)
            tracemalloc.start()
            found = []
            with tap_preactivations(model, sites, recorder.receive), torch.no_grad():
                for step in range(1, 2001):
                    model(x)
                    if window != "one window":
                        recorder.summaries()
                        recorder.reset()
                    if step % 500 == 0:
                        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                        found.append(f"{tracemalloc.get_traced_memory()[0] / 2**20:.2f} ({resident:.0f})")
            tracemalloc.stop()
            print(f"{mode}, {window}: MiB traced (peak resident) after 500 … 2000 steps: {', '.join(found)}")


class Clock(pl.Callback):
    """Thread time of the training steps of a fit after the first ten, each whole with its callbacks and loggers."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.marks.append(time.thread_time())

    def seconds(self) -> float:
        """Seconds a step."""
        return (self.marks[-1] - self.marks[10]) / (len(self.marks) - 11)


class Fitted(pl.LightningModule):
    """A network trained on one batch."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.model, self.x, self.y = model, x, y
        self.example_input_array = x

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(self.x), self.y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return range(10**6)


def fit_seconds(name: str, steps: int, **monitor: object) -> float:
    """Seconds a step of a short fit, with a monitor of these options or with none."""
    torch.manual_seed(0)
    clock = Clock()
    callbacks = [*([ActivationMonitor(figures=False, warn=False, **monitor)] if monitor else []), clock]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, barebones=False, **quiet
    )
    trainer.fit(Fitted(*{"mlp": mlp, "cnn": cnn}[name]()))
    return clock.seconds()


def trainer() -> None:
    """Step time in a Trainer with the monitor over the same without."""
    for name, steps, rounds in (("mlp", 210, 12), ("cnn", 31, 6)):
        options = {
            f"{mode}, every {every}": {"mode": mode, "every_n_steps": every} for mode in MODES for every in (1, 10)
        }
        contenders = {"without": {}, **options, "again (noise)": {}}
        seconds: dict[str, list[float]] = {title: [] for title in contenders}
        for number in range(rounds):
            titles = list(contenders)
            for title in titles[number % len(titles) :] + titles[: number % len(titles)]:
                seconds[title].append(fit_seconds(name, steps, **contenders[title]))
        reference = torch.tensor(seconds["without"])
        print(f"{name} in a Trainer: without {float(reference.median()) * 1e3:.3f} ms")
        generator = torch.Generator().manual_seed(0)
        for title in list(contenders)[1:]:
            quotients = torch.tensor(seconds[title]) / reference
            draws = quotients[torch.randint(rounds, (2000, rounds), generator=generator)].median(1).values
            low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
            print(f"  {title:24} {float(quotients.median()):6.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    for chosen in sys.argv[1:] or ("hooks", "layers", "memory", "trainer"):
        {"hooks": hooks, "layers": layers, "memory": memory, "trainer": trainer}[chosen]()
