import functools
import math

import pytest
import torch
from peek import peek, recorded
from tiny import TinyData, TinyNet, tiny_problem
from torch import nn
from torch.nn import functional as F

from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.analysis.training_set_metric import TrainingSetMetric


class Dropping(TinyNet):
    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.Dropout(0.5))


def arm(*callbacks):
    return Arm(name="arm", callbacks=lambda: list(callbacks))


def test_it_is_the_metric_of_the_training_data_without_dropout(tmp_path):
    seen, training = peek(tiny_problem(module=Dropping), arm(TrainingSetMetric()), tmp_path)
    x, y = next(iter(torch.utils.data.DataLoader(TinyData().train_dataloader().dataset, batch_size=32)))
    with torch.no_grad():
        expected = F.mse_loss(seen.module.eval()(x), y).item()
    found = recorded(training, "training_set_val_loss")
    assert found.keys() == {5, 10}
    assert found[10] == pytest.approx(expected, rel=1e-5)


def test_fewer_batches_can_be_asked_for(tmp_path):
    _, training = peek(tiny_problem(), arm(TrainingSetMetric(num_batches=1)), tmp_path)
    _, whole = peek(tiny_problem(), arm(TrainingSetMetric()), tmp_path)
    assert recorded(training, "training_set_val_loss")[10] != recorded(whole, "training_set_val_loss")[10]


def test_training_does_not_notice(tmp_path):
    plain, _ = peek(tiny_problem(module=Dropping), arm(), tmp_path / "plain")
    measured, _ = peek(tiny_problem(module=Dropping), arm(TrainingSetMetric()), tmp_path / "measured")
    assert all(torch.equal(value, measured.ending[name]) for name, value in plain.ending.items())


def test_a_run_that_was_stopped_early_ends_in_nan(tmp_path):
    problem = tiny_problem(module=functools.partial(TinyNet, blow_up=True), budget=Budget(max_steps=20, eval_every=5))
    _, training = peek(problem, arm(TrainingSetMetric()), tmp_path)
    found = recorded(training, "training_set_val_loss")
    assert math.isfinite(found[5])
    assert math.isnan(found[20])
