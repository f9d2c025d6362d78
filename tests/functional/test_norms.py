"""Norms against float64, over sizes and ranges in which float32 sums fail."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.norms import ROW, euclidean_norm, euclidean_norms


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, ROW - 1, ROW, ROW + 1, 3 * ROW + 5]), max_size=4),
    exponent=st.integers(-40, 37),
    seed=st.integers(0, 1000),
)
def test_norms_are_those_of_float64_whatever_the_size_and_range(sizes, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, generator=generator) * 10.0**exponent for size in sizes]
    expected = [part.double().norm().item() for part in parts]
    # Rows are summed up in float32.
    assert euclidean_norms(parts) == pytest.approx(expected, rel=1e-5, abs=0)
    assert euclidean_norm(parts) == pytest.approx(math.hypot(*expected), rel=1e-5, abs=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_shapes_mix(dtype):
    part = torch.randn(3, 5000).to(dtype).T
    expected = part.double().norm().item()
    assert euclidean_norms([part, torch.ones(4)]) == pytest.approx([expected, 2.0], rel=1e-5)  # as above


@pytest.mark.parametrize("size", [2, 2 * ROW])
@pytest.mark.parametrize("exponent", [-320, -300, -170, -150, -100, 100, 160, 170, 300])
def test_elements_of_float64_may_be_as_small_or_large_as_it_holds(size, exponent):
    part = torch.tensor([3.0, 4.0], dtype=torch.float64).repeat(size // 2) * 10.0**exponent
    expected = math.hypot(*part.tolist())
    assert euclidean_norms([part, torch.zeros(2).double()]) == pytest.approx([expected, 0.0], rel=1e-12, abs=0)


def test_millions_of_elements_keep_their_digits():
    part = torch.full((3_000_001,), 0.1)
    # Equal elements round alike, the worst case for sums over rows in float32; one sum over all is off by 1e-3.
    assert euclidean_norm([part]) == pytest.approx(part.double().norm().item(), rel=1e-5)


@pytest.mark.parametrize("size", [3, 2 * ROW])
def test_what_is_not_finite_is_not_hidden(size):
    part = torch.ones(size)
    part[1] = math.nan
    assert math.isnan(euclidean_norm([part]))
    part[1] = math.inf
    assert math.isinf(euclidean_norm([part]))


def test_nothing_is_as_long_as_0():
    assert euclidean_norm([]) == 0
    assert euclidean_norms([]) == []
    assert euclidean_norm([torch.zeros(2 * ROW), torch.zeros(2)]) == 0
