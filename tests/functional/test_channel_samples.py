import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.activations import empty_summary, merge_summaries
from bn_lightning.functional.channel_samples import LEAST_KEPT, channel_percentiles
from bn_lightning.functional.quantiles import percentiles
from bn_lightning.functional.summarise import summarise, summarise_rows
from bn_lightning.functional.thinning import thin

Q = (0, 15, 50, 85, 100)


def drawn(seed, size, channels, elements=None):
    """A sample of `size` elements in random channels."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.randint(channels, (size,), generator=generator)
    values = torch.randn(size, generator=generator) * (channel + 1)
    return summarise(values, channel, channels=channels, elements=elements or size, keep_channels=True), values, channel


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_percentiles_of_each_channel_are_numpys(seed, channels):
    summary, values, channel = drawn(seed, 60 * channels, channels, elements=600 * channels)
    found = channel_percentiles(summary, Q)
    for number in range(channels):
        mine = values[channel == number].double().numpy()
        assert found.kept[number] == len(mine)
        if len(mine) >= LEAST_KEPT:
            assert found.values[number].numpy() == pytest.approx(np.percentile(mine, Q), rel=1e-12)
            assert (found.errors[number, 1:4] > 0).all()
            assert found.errors[number, [0, 4]].tolist() == [0, 0]
        else:
            assert found.values[number].isnan().all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_unevenly_weighted_elements_give_the_weighted_percentiles(seed):
    small, large = drawn(seed, 200, 3, elements=300), drawn(seed + 1, 200, 3, elements=90_000)
    both = merge_summaries(small[0], large[0])
    found = channel_percentiles(both, Q)
    for number in range(3):
        mine = both.channel == number
        truth = percentiles(both.values[mine], Q, both.weights[mine])
        torch.testing.assert_close(found.values[number], truth)


def test_a_channel_that_was_read_whole_is_exact_however_small():
    x = torch.tensor([[1.0, 5.0], [2.0, math.nan], [9.0, 7.0]])
    nonfinite = torch.tensor([0, 1])
    channel = torch.arange(2).repeat(3)
    summary = summarise(x.flatten(), channel, channels=2, elements=6, nonfinite=nonfinite, keep_channels=True)
    found = channel_percentiles(summary, (0, 50, 100))
    assert found.values.tolist() == [[1, 2, 9], [5, 6, 7]]
    assert found.errors.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_last_channels_may_be_empty():
    found = channel_percentiles(
        summarise(torch.ones(50), torch.zeros(50).long(), channels=3, elements=300, keep_channels=True), (50,)
    )
    assert found.kept.tolist() == [50, 0, 0]
    assert found.values[0] == 1
    assert found.values[1:].isnan().all()


@pytest.mark.parametrize(
    "summary", [empty_summary(2), summarise(torch.ones(80), torch.arange(80) % 2, channels=2, elements=80)]
)
def test_without_elements_or_their_channels_nothing_is_known(summary):
    found = channel_percentiles(summary, (50,))
    assert found.kept.tolist() == [0, 0]
    assert found.values.isnan().all()
    assert found.errors.isnan().all()


def test_errors_are_those_of_repeated_sampling():
    """The stated errors of two channels against the scatter of 200 independent random samples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.stack([torch.randn(5000, generator=generator).exp(), torch.rand(5000, generator=generator)], 1)
    found = []
    for _ in range(200):
        rows = torch.randperm(5000, generator=generator)[:400]
        summary = summarise_rows(x[rows], torch.arange(2), elements=10_000, keep_channels=True)
        found.append(channel_percentiles(summary, (15, 50, 85)))
    scatter = torch.stack([one.values for one in found]).std(0)
    stated = torch.stack([one.errors for one in found]).mean(0)
    # The scatter of 200 draws is itself known to 5 %, an error from 400 elements to 10 to 15 %.
    torch.testing.assert_close(stated, scatter, rtol=0.2, atol=0)


def test_thinned_channels_keep_their_percentiles():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 4, generator=generator) * torch.tensor([1.0, 1.0, 3.0, 0.1]) + torch.tensor([0.0, 2, 0, 1])
    summary = summarise_rows(x, torch.arange(4), elements=40_000, keep_channels=True)
    few = thin(summary, 4000)
    assert torch.equal(few.values, thin(summarise_rows(x, torch.arange(4), elements=40_000), 4000).values)
    found = channel_percentiles(few, (15, 50, 85))
    assert (found.kept - 1000).abs().max() < 100
    truth = torch.from_numpy(np.percentile(x.double().numpy(), (15, 50, 85), axis=0).T)
    assert ((found.values - truth).abs() < 3 * found.errors).all()
