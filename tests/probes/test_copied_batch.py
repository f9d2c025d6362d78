from collections import UserDict

import pytest
import torch

from bn_lightning.probes.copied_batch import WriteWatch, copied_batch


def test_containers_are_new_and_tensors_only_where_asked_for():
    x, label = torch.zeros(2), torch.ones(1)
    batch = {"x": x, "more": [label, ("name", 3)]}
    for tensors in (False, True):
        copied = copied_batch(batch, tensors=tensors)
        assert copied["more"][1] == ("name", 3)
        assert (copied["x"] is x) is not tensors
        assert (copied_batch(x, tensors=tensors) is x) is not tensors
        copied["more"].clear()
        copied.pop("x").add_(1)
    assert list(batch) == ["x", "more"]
    assert len(batch["more"]) == 2
    assert x.tolist() == [1, 1]  # by the copy that shares it


@pytest.mark.parametrize(
    ("batch", "take"), [([torch.zeros(2), torch.ones(1)], 0), ({"x": torch.zeros(2), "y": torch.ones(1)}, "x")]
)
@pytest.mark.parametrize("tensors", [False, True])
def test_flat_batches_of_tensors_lose_nothing(batch, take, tensors):
    copied = copied_batch(batch, tensors=tensors)
    assert type(copied) is type(batch)
    assert (copied.pop(take) is batch[take]) is not tensors
    assert len(batch) == 2


def test_a_mapping_that_torch_does_not_know_is_copied_too():
    batch = UserDict(x=torch.zeros(2))
    copied_batch(batch, tensors=False).pop("x")
    assert list(batch) == ["x"]


def test_a_copy_of_an_input_that_requires_a_gradient_is_a_leaf_that_does():
    copied = copied_batch(torch.ones(2, requires_grad=True), tensors=True)
    assert copied.is_leaf
    assert copied.requires_grad


def test_writes_are_seen_through_views_and_on_tensors_taken_off_and_not_for_inference_tensors():
    with torch.inference_mode():
        frozen = torch.zeros(2)
    batch = {"x": torch.zeros(2).add_(1), "y": [torch.zeros(2)], "z": frozen}
    watch = WriteWatch(batch)
    with torch.inference_mode():
        frozen.add_(1)
    assert not watch.saw_writes
    batch.pop("y")[0][:1] = 1
    assert watch.saw_writes
