"""Moments against scipy and exact sums; merging against the whole."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pooled_statistics, standardised_moments
from torch.testing import assert_close

from bn_lightning.functional.moments import Moments, batch_moments, merge_moments

LAWS = settings(max_examples=40, deadline=None)


def sample(shape=(40, 3), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64).exp() * 2 - 1).to(dtype)


@pytest.mark.parametrize(("shape", "channel_dim"), [((40, 3), 1), ((8, 3, 5), 1), ((4, 3, 5, 2), 1), ((8, 5, 3), -1)])
def test_equals_scipy_per_channel(shape, channel_dim):
    x = sample(shape)
    moments = batch_moments(x, channel_dim)
    flat = x.movedim(channel_dim, 0).reshape(3, -1).numpy()
    assert int(moments.count) == flat.shape[1]
    assert_close(moments.mean, torch.from_numpy(flat.mean(1)))
    assert_close(moments.variance(), torch.from_numpy(flat.var(1)))
    assert_close(moments.variance(unbiased=True), torch.from_numpy(flat.var(1, ddof=1)))
    assert_close(moments.skewness(), torch.from_numpy(scipy.stats.skew(flat, axis=1)))
    assert_close(moments.kurtosis(), torch.from_numpy(scipy.stats.kurtosis(flat, axis=1)))


@pytest.mark.parametrize(
    ("dtype", "mean", "deviation"),
    [(torch.float32, 1e4, 1e-2), (torch.float64, 1e6, 1e-3), (torch.bfloat16, 100.0, 3.0), (torch.float16, 500.0, 1.0)],
)
def test_a_large_mean_costs_no_digits(dtype, mean, deviation):
    generator = torch.Generator().manual_seed(0)
    x = (mean + deviation * torch.randn(500, 1, generator=generator, dtype=torch.float64)).to(dtype)
    moments = batch_moments(x)
    values = x.double().flatten().numpy()
    skew, kurtosis = standardised_moments(values)
    assert_close(moments.mean.item(), float(np.mean(values)))
    assert_close(moments.variance().item(), float(np.var(values - values[0])))
    assert_close(moments.skewness().item(), skew)
    assert_close(moments.kurtosis().item(), kurtosis)


@LAWS
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 30), max_size=4), offset=st.sampled_from([0.0, 1e4]))
def test_any_split_merges_to_the_whole(seed, cuts, offset):
    x = sample((30, 2), seed=seed) + offset
    edges = [0, *sorted(cuts), 30]
    parts = [batch_moments(x[start:stop]) for start, stop in itertools.pairwise(edges)]
    whole = batch_moments(x)
    forwards = parts[0]
    for part in parts[1:]:
        forwards = merge_moments(forwards, part)
    backwards = parts[-1]
    for part in reversed(parts[:-1]):
        backwards = merge_moments(part, backwards)
    for merged in (forwards, backwards):
        assert int(merged.count) == 30
        assert_close(merged.mean, whole.mean)
        assert_close(merged.variance(), whole.variance())
        assert_close(merged.skewness(), whole.skewness())
        assert_close(merged.kurtosis(), whole.kurtosis())


@LAWS
@given(seed=st.integers(0, 2**31), sizes=st.tuples(*[st.integers(1, 20)] * 3))
def test_merging_is_associative_and_commutative(seed, sizes):
    a, b, c = (batch_moments(sample((size, 2), seed=seed + size)) for size in sizes)
    left = merge_moments(merge_moments(a, b), c)
    right = merge_moments(a, merge_moments(c, b))
    for name in ("count", "mean", "m2", "m3", "m4"):
        assert_close(getattr(left, name), getattr(right, name))


@LAWS
@given(seed=st.integers(0, 2**31), shift=st.floats(-100, 100), scale=st.floats(0.1, 100))
def test_shift_and_scale_act_as_they_must(seed, shift, scale):
    x = sample(seed=seed)
    plain, moved = batch_moments(x), batch_moments(scale * x + shift)
    assert_close(moved.mean, scale * plain.mean + shift)
    assert_close(moved.variance(), scale**2 * plain.variance())
    assert_close(moved.skewness(), plain.skewness())
    assert_close(moved.kurtosis(), plain.kurtosis())
    assert_close(moved.standardised().m3, plain.standardised().m3)


def test_standardised_moments_belong_to_the_standardised_values():
    x = sample()
    standardised = batch_moments(x).standardised()
    direct = batch_moments((x - x.mean(0)) / x.std(0, correction=0))
    assert_close(standardised.mean, direct.mean)
    for name in ("m2", "m3", "m4"):
        assert_close(getattr(standardised, name), getattr(direct, name))


def test_layers_stacked_in_one_tensor_merge_at_once():
    a, b = batch_moments(sample(seed=1)), batch_moments(sample((7, 3), seed=2))
    names = ("mean", "m2", "m3", "m4")

    def stacked(moments):
        return Moments(moments.count.expand(2, 3), *(getattr(moments, name).expand(2, 3) for name in names))

    both, single = merge_moments(stacked(a), stacked(b)), merge_moments(a, b)
    for name in names:
        assert_close(getattr(both, name), getattr(single, name).expand(2, 3))


def test_a_constant_channel_has_no_shape():
    moments = batch_moments(torch.full((5, 1), 3.0))
    assert moments.variance().item() == 0
    for shape in (moments.skewness(), moments.kurtosis(), moments.standardised().m3):
        assert shape.isnan().all()


def test_too_few_values_give_nan_not_a_wrong_variance():
    assert batch_moments(torch.ones(1, 2)).variance(unbiased=True).isnan().all()
    assert batch_moments(torch.ones(0, 2)).variance().isnan().all()


def test_count_is_exact_and_integer():
    assert batch_moments(sample()).count.dtype == torch.int64


def test_merged_moments_agree_with_the_pooled_oracle():
    batches = [sample((size, 3, 4), seed=size) for size in (5, 2, 9)]
    merged = batch_moments(batches[0])
    for batch in batches[1:]:
        merged = merge_moments(merged, batch_moments(batch))
    mean, variance = pooled_statistics(batches)
    assert_close(merged.mean, mean)
    assert_close(merged.variance(), variance)


def test_a_vector_has_no_channel_axis():
    with pytest.raises(ValueError, match="need a batch axis beside the channel axis"):
        batch_moments(torch.ones(3))
