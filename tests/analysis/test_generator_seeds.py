import numpy as np
import pytest
import torch

from bn_lightning.analysis.generator_seeds import numpy_seed, torch_seed
from bn_lightning.analysis.value_digest import value_digest


@pytest.mark.parametrize("make", [torch.Generator, lambda: torch.Generator().manual_seed(3)])
def test_a_generator_of_torch_is_told_alike_before_and_after_its_use(make):
    generator = make()
    torch.rand(3, generator=generator)
    assert torch_seed(generator) == torch_seed(make()) == ("cpu", generator.initial_seed())


@pytest.mark.parametrize("seed", [3, [3, 4], 2**64 - 1])
def test_a_generator_of_numpy_is_told_alike_before_and_after_its_use(seed):
    generator = np.random.default_rng(seed)
    generator.normal(size=3)
    generator.spawn(2)
    assert value_digest(generator) == value_digest(np.random.default_rng(seed)) != value_digest(np.random.default_rng())


@pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState, np.random.PCG64, np.random.MT19937])
def test_seeds_that_numpy_drew_do_not_count(kind):
    assert value_digest(kind()) == value_digest(kind())


def test_global_generators_are_told_alike_whatever_seeded_them():
    told, shared = [], (np.random.normal, torch.default_generator, np.random.mtrand._rand)
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (as seed_everything does)
        told.append([value_digest(part) for part in shared])
    assert told[0] == told[1]
    assert torch_seed(torch.default_generator) == numpy_seed(np.random.mtrand._rand) == ()
