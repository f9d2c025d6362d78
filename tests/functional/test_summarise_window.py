import numpy as np
import pytest
import scipy.stats
import torch

from bn_lightning.functional.power_sums import power_sums
from bn_lightning.functional.summarise_window import summarise_window

ORDER = np.array([2, 0, 3, 1])


def rows(count, *, dtype=np.float32, mean=3.0, spread=2.0):
    values = np.random.default_rng(0).normal(mean, spread, (count, 4))
    return (values * [1, 2, 3, 4]).astype(dtype)


# Many rows are summed in float32 about a pivot: 1e-6 is what the rounding of their squares leaves.
@pytest.mark.parametrize(("count", "tolerance"), [(7, 1e-12), (40_000, 1e-6)])
@pytest.mark.parametrize(("mean", "spread"), [(3.0, 2.0), (1e4, 1e-2)])
def test_moments_are_those_of_float64(count, tolerance, mean, spread):
    x = rows(count, mean=mean, spread=spread)
    found = summarise_window(x, ORDER, elements=3 * x.size).moments
    truth = x.astype(np.float64)[:, np.argsort(ORDER)]
    assert found.count.tolist() == [3 * count] * 4
    assert (np.abs(found.mean.numpy() - truth.mean(0)) / truth.std(0)).max() < max(tolerance, 1e-10)
    assert found.variance().tolist() == pytest.approx(truth.var(0).tolist(), rel=max(tolerance, 1e-10))
    assert found.skewness().tolist() == pytest.approx(scipy.stats.skew(truth, 0).tolist(), abs=max(tolerance, 1e-9))
    assert found.kurtosis().tolist() == pytest.approx(
        scipy.stats.kurtosis(truth, 0).tolist(), abs=max(10 * tolerance, 1e-9)
    )


@pytest.mark.parametrize("count", [50, 40_000])
def test_extremes_are_known_where_all_was_read(count):
    x = rows(count)
    found, sampled = (summarise_window(x, ORDER, elements=share * x.size) for share in (1, 2))
    assert found.extremes.tolist() == [x.min(0)[np.argsort(ORDER)].tolist(), x.max(0)[np.argsort(ORDER)].tolist()]
    assert sampled.extremes is None
    assert (found.sampled, found.count, sampled.count) == (x.size, x.size, 2 * x.size)


@pytest.mark.parametrize("keep_channels", [False, True])
def test_the_kept_elements_are_evenly_spaced_in_rank(keep_channels):
    x = rows(500)
    found = summarise_window(x, ORDER, elements=x.size, max_samples=100, keep_channels=keep_channels)
    assert found.values.tolist() == np.sort(x, axis=None)[9::20].tolist()
    assert found.weights.tolist() == [20.0] * 100
    if keep_channels:
        columns = x[:, np.argsort(ORDER)]
        for value, channel in zip(found.values.tolist(), found.channel.tolist(), strict=True):
            assert value in columns[:, channel]
    else:
        assert found.channel is None


def test_what_is_few_is_kept_as_it_is():
    x = rows(3)
    found = summarise_window(x, ORDER, elements=24, max_samples=12, keep_channels=True)
    assert found.values.tolist() == x.ravel().tolist()
    assert found.channel.tolist() == ORDER.tolist() * 3
    assert found.weights.tolist() == [2.0] * 12


def test_sums_of_all_elements_take_the_place_of_the_sample():
    x = torch.from_numpy(rows(500))
    found = summarise_window(x[:20].numpy(), np.arange(4), elements=x.numel(), sums=power_sums(x, 1))
    assert found.moments.mean.tolist() == pytest.approx(x.double().mean(0).tolist(), rel=1e-6)
    assert found.extremes[1].tolist() == x.amax(0).tolist()
    assert found.sampled == 80


def test_powers_beyond_float32_are_taken_in_float64():
    x = rows(40_000) * np.float32(1e12)
    truth = x.astype(np.float64)[:, np.argsort(ORDER)]
    found = summarise_window(x, ORDER, elements=x.size)
    assert found.moments.kurtosis().tolist() == pytest.approx(scipy.stats.kurtosis(truth, 0).tolist(), rel=1e-9)
    assert found.extremes[0].tolist() == truth.min(0).tolist()
