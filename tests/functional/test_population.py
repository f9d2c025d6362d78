"""Population estimates from batch statistics against the values themselves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import paper_statistics, pooled_statistics
from torch.testing import assert_close

from bn_lightning.functional.population import batch_statistics

LAWS = settings(max_examples=30, deadline=None)
sizes = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def batches_of(sizes, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [offset + torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in sizes]


def summed(batches):
    return batch_statistics(
        torch.tensor([float(len(batch)) for batch in batches]),
        torch.stack([batch.mean(0) for batch in batches]),
        torch.stack([batch.var(0) for batch in batches]),
    )


@LAWS
@given(sizes=sizes, seed=st.integers(0, 2**31), offset=st.sampled_from([0.0, 1e4]))
def test_both_estimates_equal_their_definition(sizes, seed, offset):
    batches = batches_of(sizes, seed, offset)
    sums = summed(batches)
    for estimate, oracle in ((sums.pooled(), pooled_statistics), (sums.paper(), paper_statistics)):
        for ours, expected in zip(estimate, oracle(batches), strict=True):
            assert_close(ours, expected)


@LAWS
@given(sizes=st.lists(st.integers(2, 9), min_size=2, max_size=6), seed=st.integers(0, 2**31), data=st.data())
def test_groups_of_batches_add_up(sizes, seed, data):
    batches = batches_of(sizes, seed)
    cut = data.draw(st.integers(1, len(batches) - 1))
    whole, parts = summed(batches), summed(batches[:cut]).merged(summed(batches[cut:]))
    for name in ("batches", "count", "mean", "m2", "sum_of_means", "sum_of_variances"):
        assert_close(getattr(parts, name), getattr(whole, name))


@LAWS
@given(sizes=sizes, seed=st.integers(0, 2**31), data=st.data())
def test_pooled_estimate_does_not_depend_on_the_batches(sizes, seed, data):
    values = torch.cat(batches_of(sizes, seed))
    cut = data.draw(st.integers(2, len(values) - 2)) if len(values) > 3 else len(values)
    parts = [part for part in (values[:cut], values[cut:]) if len(part)]
    for ours, expected in zip(summed(parts).pooled(), pooled_statistics([values]), strict=True):
        assert_close(ours, expected)
