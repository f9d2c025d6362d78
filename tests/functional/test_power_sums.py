import numpy as np
import pytest
import scipy.stats
import torch

from bn_lightning.functional.power_sums import pool_power_sums, power_sums


def rows(x, channel_dim):
    return x.double().movedim(channel_dim, -1).flatten(0, -2).numpy()


def as_channels_last(x):
    return x.to(memory_format=torch.channels_last)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "large mean, small spread": (random(3000, 4) * 1e-2 + 1e4, 1),
    "bfloat16 far from zero": ((random(3000, 4) + 100).bfloat16(), 1),
    "images": (random(8, 5, 12, 12) * 3 + 1, 1),
    "images, channels last in memory": (as_channels_last(random(8, 5, 12, 12)), 1),
    "tokens": (random(6, 50, 4), -1),
    "sequences": (random(6, 4, 50), 1),
    "several chunks of uneven size": (random(300, 3, 700), 1),
    "not contiguous": (random(40, 6, 10)[:, ::2, ::3], 1),
    "float64": (random(200, 3).double() * 1e-6 + 1, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_moments_and_extremes_are_those_of_float64(case):
    x, axis = CASES[case]
    sums, truth = power_sums(x, axis), rows(x, axis)
    moments = sums.moments()
    assert moments.count.tolist() == [len(truth)] * truth.shape[1]
    # The mean page's "shifted f32 sums": 1e-7 of the standard deviation and of the variance, 1e-6 of the kurtosis.
    spread = truth.std(0)
    assert (np.abs(moments.mean.numpy() - truth.mean(0)) / spread).max() < 1e-6
    assert moments.variance().tolist() == pytest.approx(truth.var(0).tolist(), rel=1e-6)
    assert moments.skewness().tolist() == pytest.approx(scipy.stats.skew(truth, 0).tolist(), abs=1e-6)
    assert moments.kurtosis().tolist() == pytest.approx(scipy.stats.kurtosis(truth, 0).tolist(), abs=1e-5)
    assert sums.minimum.tolist() == truth.min(0).tolist()
    assert sums.maximum.tolist() == truth.max(0).tolist()
    assert int(sums.nonfinite) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_elements_are_counted_and_kept_out(bad):
    x = random(50, 3, 4)
    x[0] = bad  # also the first chunk's first row, which makes the pivot
    x[7, 2, 1] = bad
    sums = power_sums(x, 1)
    kept = [column[np.isfinite(column)] for column in rows(x, 1).T]
    assert int(sums.nonfinite) == 13
    assert sums.count.tolist() == [len(column) for column in kept] == [196, 196, 195]
    assert sums.moments().variance().tolist() == pytest.approx([column.var() for column in kept], rel=1e-6)
    assert sums.maximum.tolist() == [column.max() for column in kept]


def test_a_channel_without_a_finite_element_counts_nothing():
    x = random(9, 2)
    x[:, 1] = torch.nan
    sums = power_sums(x, 1)
    moments = sums.moments()
    assert moments.count.tolist() == [9, 0]
    assert (moments.mean[1], moments.m2[1]) == (0, 0)
    assert (sums.minimum[1], sums.maximum[1]) == (torch.inf, -torch.inf)


def test_what_overflows_a_float32_power_is_summed_in_float64():
    x = random(500, 2) * 1e12
    assert power_sums(x, 1).moments().kurtosis().tolist() == pytest.approx(
        scipy.stats.kurtosis(x.double().numpy(), 0).tolist(), rel=1e-4, abs=1e-4
    )
    assert int(power_sums(x, 1).nonfinite) == 0


def test_nothing_has_no_moments():
    assert power_sums(torch.zeros(0, 3), 1).moments().count.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [False, True])
def test_pooled_sums_are_those_of_all_elements(bad):
    parts = [random(200, 3) * 1e-2 + 1e4, random(50, 3) + 1e4 - 3, random(1, 3) + 1e4, random(80, 3) * 3 + 1e4]
    if bad:
        parts[2][0, 1] = torch.nan
        parts[3][5, 0] = torch.inf
    pooled = pool_power_sums([power_sums(part, 1) for part in parts])
    kept = [column[np.isfinite(column)] for column in rows(torch.cat(parts), 1).T]
    moments = pooled.moments()
    assert moments.count.tolist() == [len(column) for column in kept]
    assert int(pooled.nonfinite) == 2 * bad
    assert moments.mean.tolist() == pytest.approx([column.mean() for column in kept], rel=1e-10)
    assert moments.variance().tolist() == pytest.approx([column.var() for column in kept], rel=1e-6)
    assert moments.skewness().tolist() == pytest.approx([scipy.stats.skew(column) for column in kept], abs=1e-6)
    assert moments.kurtosis().tolist() == pytest.approx([scipy.stats.kurtosis(column) for column in kept], abs=1e-5)
    assert pooled.minimum.tolist() == [column.min() for column in kept]
    assert pooled.maximum.tolist() == [column.max() for column in kept]
