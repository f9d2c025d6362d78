import warnings
from dataclasses import replace

import pytest
import torch
from monitored import SmallNet, quiet_trainer, small_data
from torch import nn

from bn_lightning.callbacks._activation_monitor.norm_warnings import NormWarnings
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.errors import StatisticsWarning
from bn_lightning.probes.norm_lag import NormLag

FINE = NormLag("bn", 0.1, 1, initial_weight=0.0, shift=0.3, ratio=1.2, broken=0)


def told(lags):
    checker, found = NormWarnings(), {}
    for step, lag in enumerate(lags):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checker.check(step * 10, [lag])
        if caught:
            found[step * 10] = [str(one.message) for one in caught]
    return found


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        ({"shift": 1.5}, r"batch mean lies 1.5 running standard deviations off"),
        ({"ratio": 5.0}, r"batch variance is 5 times the running one"),
        ({"ratio": 0.2}, r"batch variance is 0.2 times the running one"),
    ],
)
def test_far_statistics_are_told_once_after_three_recorded_steps_with_evidence_and_a_way_out(change, evidence):
    found = told([replace(FINE, **change)] * 6)
    assert list(found) == [20]
    (message,) = found[20]
    assert "the norm bn" in message
    assert evidence in message
    assert "step 20 the latest" in message
    assert "BatchNormRecalibration" in message
    assert "momentum=0.1 is the weight of a new batch" in message


def test_norms_that_are_near_or_began_only_now_are_not_told_of():
    assert told([FINE] * 5) == {}
    far = replace(FINE, shift=9.0)
    assert told([far, far, FINE, far, far, FINE]) == {}
    assert told([replace(far, initial_weight=0.06)] * 5) == {}
    assert list(told([replace(far, momentum=None)] * 3)) == [20]


def test_running_statistics_that_are_not_finite_are_told_at_once():
    found = told([replace(FINE, broken=2, shift=float("nan"), ratio=float("nan"))] * 4)
    assert list(found) == [0]
    assert found[0][0].startswith("2 channels of the norm bn have NaN or infinity in their running statistics at step")


class Normed(SmallNet):
    def __init__(self, momentum=0.1):
        super().__init__(dropout=0.0, learning_rate=0.05)
        self.net.insert(1, nn.BatchNorm1d(8, momentum=momentum))


def test_a_norm_that_comes_from_other_data_is_told_of_in_training(tmp_path):
    torch.manual_seed(0)
    module = Normed(momentum=0.001)
    norm = module.net[1]
    norm.running_mean.fill_(3.0)
    norm.num_batches_tracked.fill_(100_000)
    monitor = ActivationMonitor(every_n_steps=2)
    with pytest.warns(StatisticsWarning, match=r"the norm net\.1, which evaluation uses.*step 4 the latest"):
        quiet_trainer(tmp_path, callbacks=[monitor], max_steps=10).fit(module, small_data())


def test_a_norm_that_starts_from_nothing_is_not(tmp_path):
    torch.manual_seed(0)
    module = Normed()
    with torch.no_grad():
        module.net[0].bias += 5  # far from the running mean of 0 that the norm starts with
    quiet_trainer(tmp_path, callbacks=[ActivationMonitor(every_n_steps=1)], max_steps=60).fit(module, small_data())
    assert module.net[1].running_mean.mean() > 4
