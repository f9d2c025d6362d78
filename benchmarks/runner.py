"""What the runner of studies costs: one cell over bare training, and two processes over one.

python benchmarks/runner.py                 cells of about 30 s, eight of them; half an hour
python benchmarks/runner.py --seconds 3     a short look; the fixed costs weigh ten times as much

Overhead is (seconds of a cell in this process, from its start to its files on disk) over (seconds of a Trainer of the
same settings with the same module, data and logger, and no study around it), by turns and in turning order, each pair
with a second bare training beside it. Both run one intra-op thread. The speed-up is the wall-clock time of a study of
eight cells in one process over that in two, workers' start and imports included.

Two runs of 30 s differ by more than the limit on most machines, so the part of a cell that is not in `Trainer.fit` is
also taken by itself, within the same run, where no noise between runs enters: the study's callbacks in the fit apart,
it is all that the runner adds.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Arm, Budget, Problem, Study
from bn_lightning.analysis.training import quiet_lightning

EVALUATIONS = 20  # in a run, as in the studies at their documented sizes


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Data(pl.LightningDataModule):
    def _loader(self, samples, shuffle):
        generator = torch.Generator().manual_seed(samples)
        x = torch.randn(samples, 64, generator=generator)
        y = (x[:, :10] + torch.randn(samples, 10, generator=generator)).argmax(1)
        return DataLoader(TensorDataset(x, y), batch_size=60, shuffle=shuffle)

    def train_dataloader(self):
        return self._loader(6000, True)

    def val_dataloader(self):
        return self._loader(600, False)


def bare(steps, folder):
    """What a user would write without a study."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=steps // EVALUATIONS,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,  # the study's curve starts with this evaluation too
        log_every_n_steps=steps // EVALUATIONS,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=pl.loggers.TensorBoardLogger(folder),
    )
    trainer.fit(Net(), datamodule=Data())


def study(steps, arms=1):
    problem = Problem(
        name="benchmark",
        module=Net,
        data=Data,
        monitor="val_loss",
        mode="min",
        budget=Budget(max_steps=steps, eval_every=steps // EVALUATIONS),
        trainer_options={"accelerator": "cpu"},
    )
    names = [Arm(name=f"arm_{number}") for number in range(arms)]
    return Study(name="benchmark", question="What does it cost?", arms=tuple(names), reference="arm_0", problem=problem)


def seconds(function, *arguments, clock=time.perf_counter, **options):
    started = clock()
    function(*arguments, **options)
    return clock() - started


def steps_of(wanted, folder):
    """Optimizer steps that take about so many seconds."""
    bare(20 * EVALUATIONS, folder)  # warm, imports included
    execute(study(EVALUATIONS), seeds=1, engine="sequential", out=folder / "warm", progress=False)
    one = seconds(bare, 50 * EVALUATIONS, folder) / (50 * EVALUATIONS)
    return EVALUATIONS * max(1, round(wanted / one / EVALUATIONS))


def median_and_range(values):
    return f"{statistics.median(values):.4f} [{min(values):.4f}, {max(values):.4f}]"


@contextmanager
def fits_timed(clock):
    """Collects the seconds that each `Trainer.fit` takes."""
    found, fit = [], pl.Trainer.fit
    pl.Trainer.fit = lambda *arguments, **options: found.append(seconds(fit, *arguments, clock=clock, **options))
    try:
        yield found
    finally:
        pl.Trainer.fit = fit


def overhead(steps, rounds, clock, folder):
    ratios, noise, outside = [], [], []
    for number in range(rounds):
        out = folder / f"cell_{number}"
        contenders = {
            "bare": lambda: bare(steps, folder),
            "cell": lambda out=out: execute(study(steps), seeds=1, engine="sequential", out=out, progress=False),
            "again": lambda: bare(steps, folder),
        }
        order = list(contenders)[number % 3 :] + list(contenders)[: number % 3]
        taken = {}
        for name in order:
            with fits_timed(clock) as fits:
                taken[name] = seconds(contenders[name], clock=clock)
            if name == "cell":
                outside.append((taken[name] - sum(fits)) / sum(fits))
        ratios.append(taken["cell"] / taken["bare"])
        noise.append(taken["again"] / taken["bare"])
    print(f"a cell over bare training, {rounds} rounds: {median_and_range(ratios)}; hoped for at most 1.02")
    print(f"bare training again (noise): {median_and_range(noise)}")
    print(f"outside of Trainer.fit, as a share of it: {median_and_range(outside)}")


def speed_up(steps, rounds, folder):
    ratios = []
    for number in range(rounds):
        taken = {}
        for jobs in (1, 2) if number % 2 == 0 else (2, 1):
            out = folder / f"jobs_{jobs}_{number}"
            engine = "loky" if jobs > 1 else "sequential"
            options = {"seeds": 2, "jobs": jobs, "engine": engine, "out": out, "progress": False}
            taken[jobs] = seconds(execute, study(steps, arms=4), **options)
        ratios.append(taken[1] / taken[2])
        print(f"eight cells: {taken[1]:.1f} s in one process, {taken[2]:.1f} s in two")
    print(f"two processes over one, {rounds} rounds: {median_and_range(ratios)}; hoped for at least 1.8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0, help="of one cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="overhead in CPU time: for a loaded machine")
    parser.add_argument("--only", choices=("overhead", "speed-up"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name, quiet_lightning():
        steps = steps_of(chosen.seconds, Path(name))
        print(f"{steps} steps a cell, about {chosen.seconds:g} s")
        if chosen.only != "speed-up":
            overhead(steps, chosen.rounds, time.thread_time if chosen.cpu_time else time.perf_counter, Path(name))
        if chosen.only != "overhead":
            speed_up(steps, chosen.rounds, Path(name))
