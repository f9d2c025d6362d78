import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bn_lightning.functional.quantiles import histogram, histogram_percentiles, percentiles, sorted_samples

LAWS = settings(max_examples=50, deadline=None)
FINITE = st.floats(-1e6, 1e6, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 60), elements=FINITE)
PERCENTAGES = st.lists(st.floats(0, 100), min_size=1, max_size=5)


@LAWS
@given(VECTORS, PERCENTAGES)
def test_unweighted_percentiles_are_numpys_linear_ones(values, q):
    expected = np.percentile(values.astype(np.float64), q)
    torch.testing.assert_close(percentiles(torch.from_numpy(values), q), torch.from_numpy(expected))


@LAWS
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.lists(st.floats(0.1, 99.9), min_size=1, max_size=4))
def test_weighted_percentiles_are_numpys_inverted_cdf(n, seed, q):
    generator = np.random.default_rng(seed)
    values, weights = generator.normal(size=n).round(1), generator.uniform(0.1, 9, size=n)
    expected = np.percentile(values, q, method="inverted_cdf", weights=weights)
    actual = percentiles(torch.from_numpy(values), q, weights=torch.from_numpy(weights))
    torch.testing.assert_close(actual, torch.from_numpy(expected))


@LAWS
@given(VECTORS, st.integers(1, 4))
def test_integer_weights_mean_repetition(values, times):
    generator = np.random.default_rng(len(values))
    weights = generator.integers(1, times + 1, size=len(values)).astype(np.float64)
    repeated = np.repeat(values.astype(np.float64), weights.astype(int))
    expected = np.percentile(repeated, (15, 50, 85), method="inverted_cdf")
    actual = percentiles(torch.from_numpy(values), (15, 50, 85), weights=torch.from_numpy(weights))
    torch.testing.assert_close(actual, torch.from_numpy(expected))


def test_values_of_no_weight_do_not_count():
    values = torch.tensor([-100.0, 1.0, 2.0, 100.0])
    weights = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert percentiles(values, (0, 50, 100), weights=weights).tolist() == [1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_is_ranked_exactly(dtype):
    values = torch.randn(501, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = np.percentile(values.double().numpy(), (15, 50, 85))
    torch.testing.assert_close(percentiles(values, (15, 50, 85)), torch.from_numpy(expected))


def test_nan_makes_percentiles_nan_and_infinities_rank_at_the_ends():
    assert percentiles(torch.tensor([1.0, torch.nan]), (50,)).isnan().all()
    assert percentiles(torch.tensor([1.0, torch.nan]), (50,), weights=torch.ones(2)).isnan().all()
    infinite = torch.tensor([-torch.inf, 1.0, torch.inf])
    assert percentiles(infinite, (0, 50, 100)).tolist() == [-np.inf, 1, np.inf]


def test_sorting_leaves_the_samples_alone():
    values = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    assert sorted_samples(values).tolist() == [1, 2, 3]
    assert values.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("samples", "q", "weights", "message"),
    [
        (torch.empty(0), (50,), None, "no samples"),
        (torch.ones(2), (101,), None, "between 0 and 100"),
        (torch.ones(2), (50,), torch.tensor([-1.0, 2.0]), "none may be negative"),
        (torch.ones(2), (50,), torch.zeros(2), "one must be positive"),
    ],
)
def test_impossible_percentiles_are_refused(samples, q, weights, message):
    with pytest.raises(ValueError, match=message):
        percentiles(samples, q, weights=weights)


@LAWS
@given(VECTORS, hnp.arrays(np.float64, st.integers(2, 9), elements=st.floats(-1e3, 1e3), unique=True))
def test_histogram_counts_as_numpy_does_and_loses_nothing(values, edges):
    edges = np.sort(edges)
    counts = histogram(torch.from_numpy(values), torch.from_numpy(edges))
    expected, _ = np.histogram(values.astype(np.float64), edges)
    assert counts[1:-1].tolist() == expected.tolist()
    assert counts[0] == (values.astype(np.float64) < edges[0]).sum()
    assert counts[-1] == (values.astype(np.float64) > edges[-1]).sum()


def test_histogram_counts_no_nan_and_both_infinities():
    values = torch.tensor([torch.nan, -torch.inf, 0.5, torch.inf, torch.nan])
    assert histogram(values, torch.tensor([0.0, 1.0])).tolist() == [1, 1, 1]
    assert histogram(torch.empty(0), torch.tensor([0.0, 1.0])).tolist() == [0, 0, 0]


def test_counts_keep_counting_where_float32_stops():
    counts = torch.tensor([0, 2**24, 0]) + histogram(torch.tensor([0.5]), torch.tensor([0.0, 1.0]))
    assert counts.dtype == torch.int64
    assert counts[1] == 2**24 + 1


def test_histogram_percentiles_are_within_a_bin_of_the_true_ones():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    edges = torch.linspace(-6, 6, 241)
    found = histogram_percentiles(histogram(values, edges), edges, (15, 50, 85))
    true = percentiles(values, (15, 50, 85))
    assert (found - true).abs().max() <= 12 / 240


def test_percentiles_outside_the_edges_are_unknown():
    found = histogram_percentiles(torch.tensor([5, 1, 5]), torch.tensor([0.0, 1.0]), (1, 50, 99))
    assert found.tolist() == [-np.inf, 0.5, np.inf]


@pytest.mark.parametrize(
    ("counts", "edges", "q", "message"),
    [
        ([0, 1], [0.0, 1.0], (50,), "2 edges make 3 counts"),
        ([0, 0, 0], [0.0, 1.0], (50,), "empty"),
        ([0, 1, 0], [0.0, 1.0], (-1,), "between 0 and 100"),
        ([0, 1, 0], [1.0, 0.0], (50,), "increasing edges"),
        ([0, 1], [1.0], (50,), "two or more"),
    ],
)
def test_impossible_histogram_percentiles_are_refused(counts, edges, q, message):
    with pytest.raises(ValueError, match=message):
        histogram_percentiles(torch.tensor(counts), torch.tensor(edges), q)
