"""What modules do in their training steps that a careless probe would see, repeat or trip over."""

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from probed import DeepNet, SmoothNet, data, fit, values
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
from bn_lightning.errors import StatisticsWarning

KINDS = [CovariateShiftMonitor, LossSmoothnessMonitor]


def tables(tmp_path, net, loader, **options):
    monitors = [kind(every_n_steps=2) for kind in KINDS]
    fit(tmp_path, net, *monitors, loader=loader, **options)
    return [monitor.table() for monitor in monitors]


def named(**options):
    x, y = data().dataset.tensors
    return DataLoader([{"x": one, "y": kind} for one, kind in zip(x, y, strict=True)], batch_size=10, **options)


class Pops(DeepNet):
    def training_step(self, batch, batch_idx):
        kinds = batch.pop("y")
        return super().training_step((batch["x"], kinds), batch_idx)


class Writes(DeepNet):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].mul_(0.5), batch[1]), batch_idx)


class Halves(DeepNet):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] * 0.5, batch[1]), batch_idx)


class WithoutIndex(DeepNet):
    def training_step(self, batch):
        return super().training_step(batch, 0)


@pytest.mark.parametrize(
    ("net", "loader", "as_if"), [(Pops, named, DeepNet), (Writes, data, Halves), (WithoutIndex, data, DeepNet)]
)
def test_a_step_that_uses_up_its_batch_is_measured_like_one_that_does_not(tmp_path, net, loader, as_if):
    for found, expected in zip(tables(tmp_path, net, loader()), tables(tmp_path, as_if, data()), strict=True):
        pd.testing.assert_frame_equal(found, expected)


def test_batches_of_names_that_forward_does_not_take_go_through_training_step(tmp_path):
    class Example(Pops):
        def __init__(self):
            super().__init__()
            self.example_input_array = torch.zeros(4, 6)

    found, _ = tables(tmp_path, Example, named())
    expected, _ = tables(tmp_path, DeepNet, data())
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_collects_counts_and_writes_is_the_same_to_the_bit(tmp_path, kind):
    class Collects(SmoothNet if kind is LossSmoothnessMonitor else DeepNet):
        def __init__(self):
            super().__init__()
            self.outputs, self.steps = [], 0

        def training_step(self, batch, batch_idx):
            returned = super().training_step(batch, batch_idx)
            self.outputs.append(returned["loss"].item())
            self.steps += 1
            self.logger.log_metrics({"written": self.outputs[-1]}, self.global_step)
            return returned

    ended = []
    for name, callbacks in (("bare", []), ("probed", [kind(every_n_steps=2)])):
        logger = pl.loggers.CSVLogger(tmp_path, name="", version=name)
        module, _ = fit(tmp_path, Collects, *callbacks, logger=logger)
        written = pd.read_csv(tmp_path / name / "metrics.csv")["written"].dropna().tolist()
        ended.append((module.outputs, module.steps, written))
    assert ended[0] == ended[1]
    assert ended[0][1] == len(ended[0][2]) == 9


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # Lightning's own remark on the same
def test_a_batch_that_training_passes_over_is_no_part_of_its_step(tmp_path):
    class Passes(DeepNet):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (1, 4) else super().training_step(batch, batch_idx)

    monitor = CovariateShiftMonitor(every_n_steps=1, activations=False)
    with pytest.warns(StatisticsWarning, match="not measured at step 1: training_step returned no loss for any batch"):
        fit(tmp_path, Passes, monitor, loader=data(), max_steps=6)
    assert sorted(set(monitor.table()["step"])) == [0, 2, 3, 5]
    both = CovariateShiftMonitor(every_n_steps=1, activations=False)
    fit(tmp_path, Passes, both, loader=data(), max_steps=3, accumulate_grad_batches=2)
    assert sorted(set(both.table()["step"])) == [0, 1, 2]


def test_layers_that_the_loss_does_not_reach_are_dead_and_stop_nobody(tmp_path):
    class Unused(DeepNet):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 3)

    monitor = CovariateShiftMonitor(every_n_steps=4, activations=False)
    with pytest.warns(StatisticsWarning, match="extra is dead"):
        fit(tmp_path, Unused, monitor)
    assert values(monitor, 4, "extra")["gradient_shift_dead"] == 1
    assert values(monitor, 4, "net.4")["gradient_shift"] > 0


def test_a_step_of_one_sample_is_measured(tmp_path):
    class Plain(DeepNet):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    monitor = CovariateShiftMonitor(steps=[3], every_n_steps=0)
    fit(tmp_path, Plain, monitor, loader=data(samples=31))
    assert values(monitor, 3, "net.2")["gradient_shift"] > 0


def test_nonlinearities_are_not_looked_for_by_a_step_that_optimizes_manually(tmp_path):
    class Manual(DeepNet):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def loss_fn(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    with pytest.raises(MisconfigurationException, match=r"nonlinearities of Manual by running it.* activations=False"):
        fit(tmp_path, Manual, CovariateShiftMonitor(loss_fn=loss_fn))
    monitor = CovariateShiftMonitor(every_n_steps=2, loss_fn=loss_fn, activations=False)
    fit(tmp_path, Manual, monitor)
    assert len(monitor.table())
