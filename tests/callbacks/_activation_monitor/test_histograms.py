import numpy as np
import pytest
import torch

from bn_lightning.callbacks._activation_monitor.histograms import channel_histograms, element_histogram
from bn_lightning.functional.activations import empty_summary
from bn_lightning.functional.summarise import summarise, summarise_rows


def rows(x):
    return summarise_rows(x.T, torch.arange(len(x)), elements=x.numel())


def test_a_histogram_counts_every_element_once():
    x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    found = element_histogram(rows(x))
    flat = x.flatten().numpy()
    limits = np.array(found.limits)
    expected = np.diff([0, *(np.searchsorted(np.sort(flat), limit, side="right") for limit in limits)])
    np.testing.assert_allclose(found.counts, expected)
    assert (found.minimum, found.maximum, found.count) == (flat.min(), flat.max(), flat.size)
    assert (found.total, found.squares) == pytest.approx((flat.sum(), (flat**2).sum()))
    assert limits[-1] == flat.max()
    assert len(limits) == 32


def test_one_outlier_does_not_squeeze_the_others_into_one_bucket():
    x = torch.cat([torch.randn(999, generator=torch.Generator().manual_seed(1)), torch.tensor([1e6])])
    assert max(element_histogram(rows(x[None])).counts) < 200


def test_a_sample_stands_for_all_elements():
    found = element_histogram(summarise(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3).long(), channels=1, elements=300))
    assert found.count == pytest.approx(sum(found.counts)) == 300
    assert found.total == pytest.approx(600)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e30])
def test_a_constant_has_one_bucket_with_a_width(value):
    found = element_histogram(rows(torch.full((2, 40), value)))
    assert found.limits[0] < found.limits[1] == pytest.approx(value)
    assert sum(found.counts) == 80


def test_there_is_no_histogram_of_nothing_or_of_nan():
    assert element_histogram(empty_summary(3)) is None
    assert element_histogram(rows(torch.full((2, 4), torch.nan))) is None
    assert channel_histograms(empty_summary(3)) == {}


def test_channels_are_counted_by_their_mean_and_deviation():
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(2)).double() * torch.arange(1, 9)[:, None]
    found = channel_histograms(rows(x))
    for name, each in (("mean", x.mean(1)), ("std", x.std(1, correction=0))):
        assert found[name].count == sum(found[name].counts) == 8
        assert (found[name].minimum, found[name].maximum) == pytest.approx((each.min().item(), each.max().item()))
        assert (found[name].total, found[name].squares) == pytest.approx((each.sum().item(), (each**2).sum().item()))


@pytest.mark.parametrize("shape", [(1, 100), (8, 15)])
def test_one_channel_or_few_elements_a_channel_have_no_histogram_over_channels(shape):
    assert channel_histograms(rows(torch.randn(shape))) == {}
