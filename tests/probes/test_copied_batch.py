from collections import UserDict, namedtuple

import pytest
import torch

from bn_lightning.probes.copied_batch import copied_batch

Pair = namedtuple("Pair", ["x", "y"])


def test_containers_and_tensors_are_new():
    x, label = torch.zeros(2), torch.ones(1)
    batch = {"x": x, "more": [label, ("name", 3)]}
    copied = copied_batch(batch)
    assert copied["more"][1] == ("name", 3)
    copied["more"].clear()
    copied.pop("x").add_(1)
    assert list(batch) == ["x", "more"]
    assert len(batch["more"]) == 2
    assert x.tolist() == [0, 0]


@pytest.mark.parametrize("kind", [list, tuple, lambda parts: Pair(*parts)])
def test_flat_batches_keep_their_kind(kind):
    batch = kind([torch.zeros(2), torch.ones(1)])
    copied = copied_batch(batch)
    assert type(copied) is type(batch)
    copied[0].add_(1)
    assert batch[0].tolist() == [0, 0]
    assert torch.equal(copied[1], batch[1])


def test_a_single_tensor_is_a_batch():
    x = torch.zeros(2)
    copied_batch(x).add_(1)
    assert x.tolist() == [0, 0]


def test_a_mapping_that_torch_does_not_know_is_copied_too():
    batch = UserDict(x=torch.zeros(2))
    copied_batch(batch).pop("x")
    assert list(batch) == ["x"]


def test_a_copy_of_an_input_that_requires_a_gradient_is_a_leaf_that_does():
    copied = copied_batch(torch.ones(2, requires_grad=True))
    assert copied.is_leaf
    assert copied.requires_grad
