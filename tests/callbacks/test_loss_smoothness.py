"""The monitor's rows against the probe in a plain loop, and training with it against training without."""

import math

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from probed import SmoothNet as Net
from probed import data, plain_loss, values
from probed import fit as fit_module
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
from bn_lightning.errors import StatisticsWarning, UnknownNameError
from bn_lightning.probes.loss_smoothness import loss_smoothness

NAMES = [
    "smoothness_loss", "smoothness_gradient_norm", "loss_range_min", "loss_range_max", "gradient_predictiveness_min",
    "gradient_predictiveness_max", "effective_beta", "effective_beta_normalised",
]  # fmt: skip


class Halving(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WarmingUp(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TwoRates(Net):
    def configure_optimizers(self):
        groups = [{"params": self.net[:2].parameters(), "lr": 0.1}, {"params": self.net[4].parameters(), "lr": 0.2}]
        return torch.optim.SGD(groups)


class Manual(Net):
    """Two optimizers, one a half."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.net[:2].parameters(), lr=0.1),
            torch.optim.SGD(self.net[4].parameters(), lr=0.2),
        )


def loss_of(module, batch):
    return F.cross_entropy(module.net(batch[0]), batch[1])


def fit(tmp_path, *callbacks, module=Net, **options):
    return fit_module(tmp_path, module, *callbacks, **options)[0]


def test_rows_are_what_the_probe_gives_in_a_plain_loop(tmp_path):
    monitor = LossSmoothnessMonitor(every_n_steps=4, max_step_size=0.4, probe_size=35)
    module = fit(tmp_path, monitor, module=Halving(dropout=0.0), loader=data())
    batches = list(data())[:4]  # 35 samples in whole batches
    for step, rate in ((0, 0.5), (4, 0.25), (8, 0.125)):
        model = Net(dropout=0.0).net
        model.load_state_dict(module.weights[step])
        found = loss_smoothness(
            model, batches, loss_fn=plain_loss, learning_rate=rate, max_step_size=0.4, normalised=[["0.weight"]]
        )
        assert found.samples == 40
        assert values(monitor, step) == pytest.approx(found.numbers())


def test_a_probe_set_and_absolute_steps_can_be_given(tmp_path):
    x = torch.randn(50, 6)
    batch = (x, x[:, :3].argmax(1))
    monitor = LossSmoothnessMonitor(every_n_steps=4, step_sizes=(0.01, 0.1), probe=batch, normalised=False)
    module = fit(tmp_path, monitor, module=WarmingUp(dropout=0.0))
    model = Net(dropout=0.0).net
    model.load_state_dict(module.weights[0])
    found = loss_smoothness(model, [batch], loss_fn=plain_loss, step_sizes=(0.01, 0.1), normalised=False)
    assert values(monitor, 0) == pytest.approx(found.numbers())
    assert list(values(monitor, 8)) == NAMES[:-1]


def test_a_rate_of_0_is_no_step(tmp_path):
    monitor = LossSmoothnessMonitor(every_n_steps=4)
    with pytest.warns(StatisticsWarning, match="not measured at step 0: the learning rate is 0"):
        fit(tmp_path, monitor, module=WarmingUp())
    assert set(monitor.table()["step"]) == {4, 8}


def test_scalars_and_the_file_hold_the_table(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    monitor = LossSmoothnessMonitor(every_n_steps=4)
    fit(tmp_path, monitor, logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    table = monitor.table()
    for name in NAMES:
        rows, scalars = table[table["quantity"] == name], events.Scalars(f"smoothness/{name}")
        assert [scalar.step for scalar in scalars] == [0, 4, 8]
        assert [scalar.value for scalar in scalars] == pytest.approx(rows["value"].tolist())
    written = pd.read_csv(tmp_path / "run" / "loss_smoothness.csv", keep_default_na=False, na_values={"value": [""]})
    pd.testing.assert_frame_equal(written, table)


def test_several_rates_need_a_choice(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"found the rates 0\.1, 0\.2\. Give step_sizes="):
        fit(tmp_path, LossSmoothnessMonitor(), module=TwoRates())
    with pytest.raises(MisconfigurationException, match="found none"):
        fit(tmp_path, LossSmoothnessMonitor(parameters="conv*"), module=TwoRates())
    with pytest.raises(UnknownNameError, match=r"No trainable parameter matches 'conv\*'"):
        fit(tmp_path, LossSmoothnessMonitor(parameters="conv*", step_sizes=(1.0,)), module=TwoRates())
    monitor = LossSmoothnessMonitor(every_n_steps=4, parameters="net.4.*", normalised=False)
    module = fit(tmp_path, monitor, module=TwoRates(dropout=0.0), loader=data())
    model = Net(dropout=0.0).net
    model.load_state_dict(module.weights[4])
    found = loss_smoothness(
        model, list(data()), loss_fn=plain_loss, learning_rate=0.2, parameters="4.*", normalised=False
    )
    assert values(monitor, 4) == pytest.approx(found.numbers())


def test_manual_optimization_needs_a_loss_and_a_choice(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"of Manual, which optimizes manually\. Pass loss_fn="):
        fit(tmp_path, LossSmoothnessMonitor(), module=Manual())
    monitor = LossSmoothnessMonitor(every_n_steps=4, loss_fn=loss_of, parameters="net.0.*")
    fit(tmp_path, monitor, module=Manual())
    assert values(monitor, 4)["effective_beta"] > 0


def test_a_dead_network_is_nan_and_warned_of_once(tmp_path):
    monitor = LossSmoothnessMonitor(every_n_steps=2)
    with pytest.warns(StatisticsWarning, match="The network is dead at step 0: its gradient") as caught:
        fit(tmp_path, monitor, module=Net(scale=0.0))
    assert len([warning for warning in caught if warning.category is StatisticsWarning]) == 1
    assert math.isnan(values(monitor, 4)["effective_beta"])


def test_a_diverged_run_goes_on_as_nan(tmp_path):
    monitor = LossSmoothnessMonitor(every_n_steps=4)
    fit(tmp_path, monitor, module=Net(scale=math.inf))
    assert all(math.isnan(value) for value in values(monitor, 8).values())
    assert list(values(monitor, 8)) == NAMES


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Step sizes must be positive and finite"):
        LossSmoothnessMonitor(multiples=(0, 1))
    with pytest.raises(ValueError, match="A direction is 'descent' or 'ascent', not 'up'"):
        LossSmoothnessMonitor(direction="up")
