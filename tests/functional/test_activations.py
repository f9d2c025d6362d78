import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.activations import (
    ActivationSummary,
    empty_summary,
    merge_summaries,
    pool_channels,
)
from bn_lightning.functional.moments import batch_moments
from bn_lightning.functional.summarise import summarise, summarise_rows
from bn_lightning.functional.thinning import thin

LAWS = settings(max_examples=40, deadline=None)


def whole(x):
    """A summary of all elements of `[N, C]`."""
    channel = torch.arange(x.shape[1]).repeat(x.shape[0])
    return summarise(x.reshape(-1), channel, channels=x.shape[1], elements=x.numel())


def assert_same(first: ActivationSummary, second: ActivationSummary):
    assert first.count == second.count
    assert (first.sampled, first.nonfinite) == (second.sampled, second.nonfinite)
    for name in ("mean", "m2", "m3", "m4"):
        torch.testing.assert_close(getattr(first.moments, name), getattr(second.moments, name))
    torch.testing.assert_close(first.values.sort().values, second.values.sort().values)


@LAWS
@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.0, 1e4]))
def test_a_summary_of_everything_is_exact(n, channels, seed, shift):
    x = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed)) * 0.01 + shift
    summary, exact = whole(x), x.double().numpy()
    torch.testing.assert_close(summary.moments.mean, torch.from_numpy(exact.mean(0)))
    torch.testing.assert_close(summary.moments.variance(), torch.from_numpy(exact.var(0)))
    torch.testing.assert_close(summary.moments.m4, torch.from_numpy(((exact - exact.mean(0)) ** 4).sum(0)))
    assert summary.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert summary.variance == pytest.approx(exact.var(), rel=1e-7)
    assert summary.percentiles((15, 50, 85)) == pytest.approx(np.percentile(exact, (15, 50, 85)).tolist())
    assert summary.mean_error() == summary.variance_error() == 0


@LAWS
@given(st.integers(1, 30), st.permutations(range(4)), st.integers(0, 10**6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_in_turns_of_the_channels_give_the_same_summary(dtype, rows, order, seed):
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).to(dtype) + 100
    given = x.clone()
    channel = torch.tensor(order)
    general = summarise(x.reshape(-1), channel.repeat(rows), channels=4, elements=1200 * rows)
    fast = summarise_rows(x, channel, elements=1200 * rows)
    assert torch.equal(x, given)
    assert_same(fast, general)
    assert fast.moments.count.tolist() == general.moments.count.tolist() == [300 * rows] * 4
    torch.testing.assert_close(fast.weights, general.weights)


@LAWS
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 10**6))
def test_uneven_parts_merge_to_the_whole_in_any_order(sizes, seed):
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)).double() + 1e4
    parts = [whole(part) for part in x.split(sizes)]
    forward, backward = empty_summary(3), empty_summary(3)
    for part in parts:
        forward = merge_summaries(forward, part)
    for part in reversed(parts):
        backward = merge_summaries(part, backward)
    assert_same(forward, whole(x))
    assert_same(backward, whole(x))


def test_a_sample_counts_for_all_it_stands_for():
    """Two samples of equal size, one of a tensor nine times as large: the mean leans on the large one."""
    channel = torch.zeros(100, dtype=torch.long)
    small = summarise(torch.full((100,), 10.0), channel, channels=1, elements=100)
    large = summarise(torch.zeros(100), channel, channels=1, elements=900)
    both = merge_summaries(small, large)
    assert both.count == 1000
    assert both.mean == pytest.approx(1.0)
    assert both.percentiles((50, 89, 91)) == [0, 0, 10]


def test_pooled_channels_are_the_moments_of_all_elements():
    x = torch.randn(50, 7, dtype=torch.float64) * torch.arange(1, 8) + torch.arange(7)
    summary, flat = whole(x), batch_moments(x.reshape(-1, 1))
    pooled = [350, *(float(part) for part in (flat.mean, flat.m2, flat.m3, flat.m4))]
    assert pool_channels(summary.moments).tolist() == pytest.approx(pooled)
    elements = x.reshape(-1).numpy()
    assert summary.skewness == pytest.approx(scipy.stats.skew(elements))
    assert summary.kurtosis == pytest.approx(scipy.stats.kurtosis(elements))


def test_nonfinite_elements_enter_their_own_count_only():
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    nonfinite = torch.tensor([1, 4])
    summary = summarise(values, torch.tensor([0, 0, 0, 1]), channels=2, elements=8, nonfinite=nonfinite)
    assert (summary.nonfinite, summary.elements, summary.count) == (5, 8, 3)
    assert summary.sampled == 2
    assert summary.moments.count.tolist() == summary.channel_count.tolist() == [3, 0]
    assert (summary.mean, summary.variance) == (2, 1)
    assert summary.percentiles((0, 100)) == [1, 3]
    assert float(summary.weights.sum()) == summary.count


def test_an_empty_summary_says_nan():
    empty = empty_summary(4)
    assert empty.count == 0
    numbers = [empty.mean, empty.variance, empty.mean_error(), empty.variance_error()]
    assert all(math.isnan(number) for number in numbers + empty.percentiles((50,)) + empty.percentile_errors((50,)))


@LAWS
@given(st.integers(2, 300), st.integers(1, 50), st.integers(0, 10**6))
def test_thinning_moves_no_percentile_by_more_than_its_share(n, keep, seed):
    generator = np.random.default_rng(seed)
    weights = torch.from_numpy(generator.uniform(0.1, 5, n))
    full = whole(torch.from_numpy(generator.permutation(n).astype(np.float64)).reshape(n, 1))
    full = replace(full, weights=weights)
    few = thin(full, keep)
    assert len(few.values) == min(n, keep)
    assert float(few.weights.sum()) == pytest.approx(float(weights.sum()))
    assert few.mean == full.mean
    largest = float(weights.max() / weights.sum())
    for value in full.values:
        true = float(weights[full.values <= value].sum() / weights.sum())
        now = float(few.weights[few.values <= value].sum() / few.weights.sum())
        assert abs(true - now) <= 0.5 / keep + largest


def test_standard_errors_are_those_of_repeated_sampling():
    """The stated errors against the scatter of 400 independent random samples of one activation."""
    generator = torch.Generator().manual_seed(3)
    activation = torch.randn(20_000, generator=generator).exp()
    channel = torch.zeros(1000, dtype=torch.long)
    drawn = [
        summarise(activation[torch.randperm(20_000, generator=generator)[:1000]], channel, channels=1, elements=20_000)
        for _ in range(400)
    ]
    scatter = {
        "mean": np.std([d.mean for d in drawn]) / np.mean([d.mean_error() for d in drawn]),
        "variance": np.std([d.variance for d in drawn]) / np.sqrt(np.mean([d.variance_error() ** 2 for d in drawn])),
        "median": np.std([d.percentiles((50,))[0] for d in drawn])
        / np.mean([d.percentile_errors((50,))[0] for d in drawn]),
    }
    # The scatter of 400 draws is itself known to 3.5 %; the variance of a log-normal far less well.
    assert scatter["mean"] == pytest.approx(1, abs=0.15)
    assert scatter["median"] == pytest.approx(1, abs=0.15)
    assert scatter["variance"] == pytest.approx(1, abs=0.3)


def test_layers_of_different_width_do_not_merge():
    with pytest.raises(ValueError, match="2 and 3 channels"):
        merge_summaries(empty_summary(2), empty_summary(3))
