import math

import pytest
import torch
from torch import nn

from bn_lightning.probes.norm_lag import RunningStatisticsWatch


def batch(seed, shift=0.0, scale=1.0, n=40):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * scale + shift


def expected(norm, old, x):
    """From the batch itself, in float64."""
    mean, variance = x.double().mean(0), x.double().var(0)
    scale = old[1].double() + norm.eps
    return ((mean - old[0].double()).abs() / scale.sqrt()).median(), ((variance + norm.eps) / scale).median()


@pytest.mark.parametrize(("momentum", "tolerance"), [(0.1, 1e-5), (0.01, 1e-4), (None, 1e-4)])
def test_batch_statistics_come_out_of_the_running_ones(momentum, tolerance):
    norm = nn.BatchNorm1d(6, momentum=momentum)
    watch = RunningStatisticsWatch(norm)
    for seed in range(30):
        norm(batch(seed, shift=2.0, scale=3.0))
    old = norm.running_mean.clone(), norm.running_var.clone()
    x = batch(99, shift=5.0, scale=6.0)
    watch.begin()
    norm(x)
    (lag,) = watch.end()
    shift, ratio = expected(norm, old, x)
    # Rounding of the float32 buffers is divided by the momentum.
    assert lag.shift == pytest.approx(shift.item(), rel=tolerance)
    assert lag.ratio == pytest.approx(ratio.item(), rel=tolerance)
    assert (lag.batches, lag.momentum, lag.broken) == (1, momentum, 0)
    assert lag.initial_weight == pytest.approx((1 - (momentum or 1)) ** 30)


def test_of_several_batches_the_later_ones_weigh_more():
    norm = nn.BatchNorm1d(6, momentum=0.2)
    watch = RunningStatisticsWatch(norm)
    parts = [batch(seed, shift=seed) for seed in range(3)]
    watch.begin()
    for x in parts:
        norm(x)
    (lag,) = watch.end()
    weights = torch.tensor([0.64, 0.8, 1.0]).double() * 0.2
    mean = sum(w * x.double().mean(0) for w, x in zip(weights, parts, strict=True)) / weights.sum()
    # From mean 0 and variance 1.
    assert lag.shift == pytest.approx((mean.abs() / math.sqrt(1 + norm.eps)).median().item(), rel=1e-5)
    assert (lag.batches, lag.initial_weight) == (3, 1.0)


def test_norms_that_have_nothing_to_compare_are_left_out():
    model = nn.ModuleDict(
        {
            "trained": nn.BatchNorm1d(6),
            "frozen": nn.BatchNorm1d(6).eval(),
            "untracked": nn.BatchNorm1d(6, track_running_stats=False),
            "still": nn.BatchNorm1d(6, momentum=0.0),
            "idle": nn.BatchNorm1d(6),
            "lazy": nn.LazyBatchNorm1d(),
            "instance": nn.InstanceNorm1d(6, track_running_stats=True),
        }
    )
    watch = RunningStatisticsWatch(model)
    assert watch.end() == ()
    watch.begin()
    for name in ("trained", "frozen", "untracked", "still"):
        model[name](batch(0))
    assert [lag.norm for lag in watch.end()] == ["trained"]
    assert watch.end() == ()
    assert RunningStatisticsWatch(nn.Linear(2, 2)).end() == ()


def test_running_statistics_that_are_broken_for_good_are_told_apart():
    norm = nn.BatchNorm1d(6)
    watch = RunningStatisticsWatch(norm)
    x = batch(0)
    x[0, 2] = torch.nan
    norm(x)
    watch.begin()
    norm(batch(1))
    (lag,) = watch.end()
    assert lag.broken == 1
    assert math.isfinite(lag.shift)
    norm.running_mean.fill_(torch.nan)
    watch.begin()
    norm(batch(1))
    (lag,) = watch.end()
    assert lag.broken == 6
    assert math.isnan(lag.shift)
    assert math.isnan(lag.ratio)


def test_the_model_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6).double())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watch = RunningStatisticsWatch(model)
    watch.begin()
    watch.end()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
