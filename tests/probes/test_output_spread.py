"""Spread over batch companions: against a loop by hand, a closed form, and where it must be exactly 0."""

import copy
import math

import pytest
import torch
from torch import nn

from bn_lightning.errors import BatchSizeError
from bn_lightning.layers.noisy_batch_norm import NoisyBatchNorm
from bn_lightning.probes.output_spread import output_spread


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))


def samples(n=80):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def test_it_is_the_standard_deviation_over_batches_by_hand():
    model, x = nn.BatchNorm1d(4, affine=False).double(), samples(6).double()
    seen = []

    def forward(model, batch):
        seen.append(batch.clone())
        return model(batch)

    (found,) = output_spread(model, x, [2, 5], batch_sizes=(3,), draws=4, forward=forward)
    assert (found.batch_size, found.draws, len(seen)) == (3, 4, 8)
    values = []
    for number, batch in enumerate(seen):
        assert torch.equal(batch[0], x[2] if number < 4 else x[5])
        assert len(batch.unique(dim=0)) == 3  # nobody twice, and never the example itself
        values.append(((batch - batch.mean(0)) / (batch.var(0, correction=0) + 1e-5).sqrt())[0])
    values = torch.stack(values).reshape(2, 4, 4)
    spread = values.std(1).mean().item()
    assert found.spread == pytest.approx(spread)
    assert found.relative == pytest.approx(spread / values.mean(1).std(0).mean().item())


def test_companions_are_drawn_without_replacement_from_all_others():
    x, seen = torch.arange(5.0)[:, None], []
    output_spread(
        nn.Identity(), x, [1], batch_sizes=(3,), draws=300, forward=lambda m, b: seen.append(b[1:, 0].tolist()) or b
    )
    assert all(len(set(pair)) == 2 for pair in seen)
    counts = [sum(value in pair for pair in seen) for value in range(5)]
    assert counts[1] == 0
    # Each of the four others is in half of the 300 draws; five standard deviations of a binomial are 43.
    assert all(abs(count - 150) < 43 for index, count in enumerate(counts) if index != 1)


def test_a_centring_layer_spreads_as_the_mean_of_a_finite_sample_does():
    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    x = samples(50).double()
    found = output_spread(Centre(), x, range(50), batch_sizes=(2, 5, 20), draws=200)
    for part in found:
        m, n = part.batch_size, 49
        # The mean of m − 1 of the n others has the variance S²/(m − 1) · (1 − (m − 1)/n), times ((m − 1)/m)².
        expected = []
        for example in range(50):
            others = torch.cat([x[:example], x[example + 1 :]]).std(0)
            expected.append((others * math.sqrt((m - 1) * (1 - (m - 1) / n)) / m).mean())
        # 200 draws of 50 × 4 values: a standard error of 1/√(2·200)/√200 ≈ .35 %.
        assert part.spread == pytest.approx(torch.stack(expected).mean().item(), rel=0.02)


def test_larger_batches_spread_less_and_noise_that_is_no_companions_does_not_count():
    plain = output_spread(network(nn.BatchNorm1d(6)), samples(), range(6), batch_sizes=(4, 16, 64), draws=10)
    assert plain[0].spread > plain[1].spread > plain[2].spread > 0
    noisy = NoisyBatchNorm(6)
    alone = output_spread(nn.Sequential(nn.LayerNorm(4), noisy.noise), samples(), [0], batch_sizes=(4,), draws=5)
    assert alone[0].spread == 0


@pytest.mark.parametrize(
    "model",
    [network(nn.BatchNorm1d(6)).eval(), network(nn.LayerNorm(6)), network(nn.Identity())],
    ids=["evaluation", "layer norm", "no norm"],
)
def test_without_batch_statistics_the_spread_is_exactly_zero(model):
    found = output_spread(model, samples(), [0, 7, 79], batch_sizes=(2, 8, 64), draws=5)
    assert [part.spread for part in found] == [0.0] * 3
    assert [part.relative for part in found] == [0.0] * 3


def test_nothing_of_the_model_or_the_random_state_moves():
    model = network(nn.BatchNorm1d(6))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = output_spread(model, samples(), [0, 1], batch_sizes=(4,), draws=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(99)
    assert output_spread(model, samples(), [0, 1], batch_sizes=(4,), draws=3) == first
    assert output_spread(model, samples(), [0, 1], batch_sizes=(4,), draws=3, seed=1)[0].spread != first[0].spread


def test_pairs_and_mappings_are_cut_like_batches():
    model, x = network(nn.BatchNorm1d(6)), samples()
    plain = output_spread(model, x, [3, 4], batch_sizes=(8,), draws=3)
    assert output_spread(model, (x, torch.zeros(80)), [3, 4], batch_sizes=(8,), draws=3) == plain
    assert output_spread(model, {"input": x}, [3, 4], batch_sizes=(8,), draws=3) == plain


def test_outputs_that_are_not_finite_are_nan_and_one_example_has_no_relative_value():
    (found,) = output_spread(nn.BatchNorm1d(4), samples() * math.inf, [0, 1], batch_sizes=(4,), draws=2)
    assert math.isnan(found.spread)
    assert math.isnan(found.relative)
    (found,) = output_spread(nn.BatchNorm1d(4), samples(), [0], batch_sizes=(4,), draws=2)
    assert math.isnan(found.relative)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((samples(), []), {}, ValueError, "got 0 examples and 20 draws"),
        ((samples(), [0]), {"draws": 1}, ValueError, "got 1 examples and 1 draws"),
        ((samples(), [0, 80]), {}, IndexError, r"positions from 0 to 79 in the data, not \[80\]"),
        ((samples(10), [0]), {}, BatchSizeError, r"of 1 to 10 samples, all that there are; asked for \[16, 32, 64\]"),
        (((samples(), torch.zeros(3)), [0]), {}, ValueError, r"got lengths \[3, 80\]"),
        ((samples(), [0]), {"forward": lambda m, b: m(b).mean()}, TypeError, r"batch of 2 is a Tensor of shape \(\)"),
        ((samples(), [0]), {"forward": lambda m, b: [m(b)]}, TypeError, "batch of 2 is a list, and must be a tensor"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        output_spread(nn.BatchNorm1d(4), *arguments, **options)
