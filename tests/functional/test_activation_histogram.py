import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.activation_histogram import channel_histograms, histogram_edges, layer_histogram
from bn_lightning.functional.activations import empty_summary, merge_summaries
from bn_lightning.functional.summarise import summarise, summarise_rows


def whole(x):
    return summarise_rows(x, torch.arange(x.shape[1]), elements=x.numel(), keep_channels=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 20))
def test_a_histogram_of_everything_is_numpys(seed, rows, bins):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).double()
    summary = whole(x)
    edges = histogram_edges(summary, bins)
    truth, bounds = np.histogram(x.numpy(), bins=bins)
    assert edges.numpy() == pytest.approx(bounds)
    counts = torch.stack([torch.from_numpy(np.histogram(x[:, c].numpy(), bins=edges.numpy())[0]) for c in range(3)])
    torch.testing.assert_close(channel_histograms(summary, edges), counts.double())
    torch.testing.assert_close(layer_histogram(summary, edges), counts.sum(0).double())
    assert int(truth.sum()) == int(counts.sum())


def test_a_sample_counts_for_all_of_its_channel():
    parts = [
        summarise(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([0, 0, 1]), channels=3, elements=300, keep_channels=True),
        summarise(torch.tensor([0.0, 4.0]), torch.tensor([0, 1]), channels=3, elements=30, keep_channels=True),
    ]
    summary = merge_summaries(*parts)
    counts = channel_histograms(summary, torch.tensor([0.0, 3.0, 6.0, 9.0], dtype=torch.float64))
    assert counts[0].tolist() == [110, 0, 0]
    # Of a hundred elements each and of fifteen each.
    assert counts[1].tolist() == pytest.approx([0, 110 * 15 / 115, 110 * 100 / 115])
    assert counts[2].isnan().all()


def test_a_channel_without_a_finite_element_has_empty_bins():
    x = torch.tensor([1.0, torch.nan, 2.0, torch.nan])
    summary = summarise(
        x, torch.tensor([0, 1, 0, 1]), channels=2, elements=4, nonfinite=torch.tensor([0, 2]), keep_channels=True
    )
    assert channel_histograms(summary, histogram_edges(summary, 2)).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("value", [0.0, -7.5, 1e30, 3e38])
def test_a_constant_has_a_bin_around_it(value):
    summary = whole(torch.full((6, 2), value))
    edges = histogram_edges(summary, 3)
    assert (edges.diff() >= 0).all()
    assert edges[0] < torch.tensor(value).double() < edges[-1]
    assert layer_histogram(summary, edges).sum() == 12


def test_what_has_no_histogram_is_refused():
    with pytest.raises(ValueError, match="one bin or more, got bins=0"):
        histogram_edges(whole(torch.ones(3, 1)), 0)
    with pytest.raises(ValueError, match="none was recorded"):
        histogram_edges(empty_summary(2), 3)
    with pytest.raises(ValueError, match="keep_channels=True"):
        channel_histograms(
            summarise_rows(torch.ones(3, 1), torch.arange(1), elements=3), torch.tensor([0.0, 2.0]).double()
        )
