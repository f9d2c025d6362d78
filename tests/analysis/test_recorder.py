import random

import numpy as np
import torch

from bn_lightning.analysis.recorder import seed_all


def test_all_three_generators_are_seeded():
    drawn = []
    for _ in range(2):
        seed_all(5)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002 - the legacy generator is meant
    assert drawn[0] == drawn[1]
