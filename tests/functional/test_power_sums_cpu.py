import threading

import numpy as np
import pytest
import torch

from bn_lightning.functional.power_sums_cpu import finite_sums

# Short lines, lines, lines cut in two, many short rows, a single row, single channel.
SHAPES = [(40, 3, 7), (6, 5, 200), (3, 2, 9000), (70_000, 2, 1), (1, 900, 1), (1, 1, 300), (2, 3000, 100)]


def blocks(shape, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 5).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_and_extremes_are_those_of_float64(shape, dtype):
    x = blocks(shape, dtype)
    pivot, sums, low, high = finite_sums(x)
    exact = x.double().numpy()
    centred = exact - pivot.double().numpy()[:, None]
    for power in range(4):
        scale = np.abs(centred ** (power + 1)).sum((0, 2))
        # Relative to the sum of magnitudes: a few roundings of float32, of the difference, its powers and their sums.
        error = np.abs(sums[power].numpy() - (centred ** (power + 1)).sum((0, 2)))
        assert (error <= 2e-6 * scale).all()
    assert low.tolist() == exact.min((0, 2)).tolist()
    assert high.tolist() == exact.max((0, 2)).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_sums(shape, bad):
    x = blocks(shape)
    x[-1, -1, -1] = bad
    assert not finite_sums(x)[1].isfinite().all()


@pytest.mark.parametrize("shape", [(6, 5, 200), (500, 10, 1)])
def test_temporaries_outlive_inference_mode_and_are_not_shared_by_threads(shape):
    x = blocks(shape)
    with torch.inference_mode():
        first = finite_sums(x)[1].clone()
    found = {}

    def work(number):
        for _ in range(20):
            found[number] = finite_sums(x * number)[1]

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(finite_sums(x)[1], first)
    assert torch.equal(found[1], first)
    assert torch.equal(found[2], first * torch.tensor([2.0, 4, 8, 16], dtype=torch.float64)[:, None])
