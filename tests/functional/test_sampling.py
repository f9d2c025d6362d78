import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.sampling import (
    count_nonfinite,
    lattice_index,
    lattice_step,
    memory_offsets,
    sample_size,
    spread_rows,
)

LAWS = settings(max_examples=50, deadline=None)


@LAWS
@given(st.integers(1, 10**7))
def test_the_step_visits_every_element_once(elements):
    step = lattice_step(elements)
    assert math.gcd(step, elements) == 1
    assert elements < 2000 or abs(step / elements - 0.618) < 0.15


@LAWS
@given(st.integers(1, 400), st.integers(1, 60))
def test_successive_windows_cover_the_whole_activation(elements, size):
    size = min(size, elements)
    windows = -(-elements // size)
    numbers = torch.cat([lattice_index(elements, size, window * size) for window in range(windows)])
    assert sorted(set(numbers.tolist())) == list(range(elements))
    assert len(set(numbers[:elements].tolist())) == elements


@LAWS
@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 1000))
def test_every_channel_comes_equally_often(channels, positions, start):
    elements = channels * positions
    size = sample_size(elements, channels, max(channels, elements // 3))
    of_channel = lattice_index(elements, size, start) % channels
    counts = torch.bincount(of_channel, minlength=channels)
    assert counts.min() == counts.max()


@pytest.mark.parametrize(
    ("positions", "channels"), [(60, 100), (50, 128), (128, 512), (32 * 784, 16), (8 * 64 * 64, 64)]
)
def test_positions_are_spread_more_evenly_than_at_random(positions, channels):
    elements = positions * channels
    size = sample_size(elements, channels, 1024)
    parts = positions if positions <= 64 else 64
    part = lattice_index(elements, size, 0) // channels * parts // positions
    counts = torch.bincount(part, minlength=parts).double()
    assert counts.std() < 0.5 * math.sqrt(size / parts)


@pytest.mark.parametrize("shape", [(7, 5), (4, 5, 6), (2, 5, 3, 4), (2, 5, 2, 3, 2)])
def test_offsets_point_at_the_elements_of_that_number(shape):
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    numbers = torch.arange(x.numel())
    inner = math.prod(shape[2:])
    by_number = x.movedim(1, -1).reshape(-1)
    torch.testing.assert_close(x.reshape(-1)[memory_offsets(numbers, channels=5, inner=inner)], by_number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nonfinite_values_are_counted_exactly(dtype):
    x = torch.full((300, 7), 1000.0, dtype=dtype)
    assert count_nonfinite(x) == 0  # their float16 sum would overflow
    x[3, 2], x[5, 5], x[9, 0] = torch.inf, -torch.inf, torch.nan
    assert count_nonfinite(x) == 3


def test_finite_values_whose_sum_overflows_are_no_alarm():
    assert count_nonfinite(torch.full((10,), 3e38)) == 0


def test_nonsense_sizes_are_refused():
    with pytest.raises(ValueError, match="max_elements=0"):
        sample_size(10, 2, 0)
    with pytest.raises(ValueError, match="at least one element"):
        lattice_step(0)


@LAWS
@given(st.integers(0, 10**6), st.integers(1, 3000))
def test_rows_are_spread_over_equal_shares(rows, most):
    kept = spread_rows(rows, most)
    assert len(kept) == min(rows, most)
    assert len(set(kept.tolist())) == len(kept)
    if rows > most:
        bounds = torch.arange(most + 1) * rows // most
        assert ((kept >= bounds[:-1]) & (kept < bounds[1:])).all()


@pytest.mark.parametrize("period", [32, 1024])
def test_no_column_or_line_of_an_image_is_preferred(period):
    kept = spread_rows(64 * 1024, 2048)
    parts = (kept % period) // (period // 32)
    counts = torch.bincount(parts, minlength=32).double()
    # Of a multinomial of mean 64: six deviations.
    assert (counts - 64).abs().max() < 6 * math.sqrt(64)
