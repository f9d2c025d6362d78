import math

import pytest
import torch
import torch.nn.functional as F

from bn_lightning.functional.activations import empty_summary
from bn_lightning.functional.saturation import (
    STEEP,
    channel_saturated_shares,
    dead_channels,
    dead_share,
    is_two_sided,
    saturated_share,
)
from bn_lightning.functional.summarise import summarise, summarise_rows

FUNCTIONS = {"expit": torch.special.expit, "erf": torch.erf, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


@pytest.mark.parametrize("op", STEEP)
def test_the_intervals_are_where_autograd_finds_a_steep_derivative(op):
    x = torch.linspace(-12, 12, 240001, dtype=torch.float64, requires_grad=True)
    function = FUNCTIONS.get(op) or getattr(F, op)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    steep = slope.abs() >= 0.05 * slope.abs().max()
    low, high = x.detach()[steep].aminmax()
    expected = (low if low > -12 else -math.inf, high if high < 12 else math.inf)
    assert STEEP[op] == pytest.approx(tuple(map(float, expected)), abs=2e-4)
    assert is_two_sided(op) == (low > -12 and high < 12)


def test_a_sample_weighs_each_element_by_what_it_stands_for():
    x = torch.tensor([-9.0, 0.0, 1.0, 2.0])
    summary = summarise(x, torch.zeros(4, dtype=torch.long), channels=1, elements=400)
    assert saturated_share(summary, "sigmoid") == 0.25
    assert math.isnan(dead_share(summary, "sigmoid"))  # a sample cannot say never


def test_a_dead_channel_lies_on_one_side():
    x = torch.tensor([[-1.0, -9.0, 9.0, -9.0], [0.0, 9.0, 8.0, 0.0]])
    summary = summarise_rows(x, torch.arange(4), elements=8)
    assert dead_share(summary, "relu") == 0.5  # channels 0 and 3; a ReLU passes nothing at 0
    assert dead_share(summary, "sigmoid") == 0.25  # channel 2; channel 1 jumps from side to side


def test_channels_without_a_finite_element_are_not_counted_among_the_dead():
    x = torch.tensor([[-1.0, torch.nan], [-2.0, torch.nan]]).flatten()
    summary = summarise(x, torch.tensor([0, 1, 0, 1]), channels=2, elements=4, nonfinite=torch.tensor([0, 2]))
    assert dead_share(summary, "relu") == 1.0


@pytest.mark.parametrize("op", ["gelu", "relu"])
def test_nothing_and_unknown_nonlinearities_have_no_share(op):
    summary = empty_summary(2)
    assert math.isnan(saturated_share(summary, op))
    assert math.isnan(dead_share(summary, op))
    assert dead_channels(summary, op).isnan().all()
    assert channel_saturated_shares(summary, op).isnan().all()


@pytest.mark.parametrize("op", STEEP)
def test_a_channel_is_as_dead_behind_its_nonlinearity_as_before(op):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 300, generator=generator) * 0.3 + torch.linspace(-9, 9, 300)
    function = FUNCTIONS.get(op) or getattr(F, op)
    before, after = (summarise_rows(part, torch.arange(300), elements=12000) for part in (x, function(x)))
    dead = dead_channels(before, op)
    assert torch.equal(dead_channels(after, op, returned=True), dead)
    assert 0 < dead_share(after, op, returned=True) == dead_share(before, op) < 1


def test_saturated_shares_of_channels_are_weighted_and_average_to_that_of_the_layer():
    x = torch.tensor([[-1.0, 2.0, math.nan], [-2.0, -3.0, math.nan], [1.0, 2.0, math.nan], [2.0, 5.0, math.nan]])
    channel, nonfinite = torch.arange(3).repeat(4), torch.tensor([0, 0, 4])
    summary = summarise(x.flatten(), channel, channels=3, elements=12, nonfinite=nonfinite, keep_channels=True)
    shares = channel_saturated_shares(summary, "relu")
    assert shares[:2].tolist() == [0.5, 0.25]
    assert shares[2].isnan()
    assert saturated_share(summary, "relu") == 0.375
