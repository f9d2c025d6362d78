"""The default ways to run a model on a batch, and the clear refusal of all others."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bn_lightning.surgery.forward import call_model, device_of, move_to

X = torch.arange(6.0).view(3, 2)


class Doubled(nn.Module):
    def forward(self, x, plus=0.0):
        return 2 * x + plus


@dataclass
class Unknown:
    x: torch.Tensor


@pytest.mark.parametrize(
    "batch", [X, [X, "target"], (X,), {"x": X}, UserDict({"x": X})], ids=lambda batch: type(batch).__name__
)
def test_default_by_kind_of_batch(batch):
    assert_close(call_model(Doubled(), batch), 2 * X)


def test_every_key_of_a_mapping_is_an_argument():
    assert_close(call_model(Doubled(), {"x": X, "plus": 1.0}), 2 * X + 1)


def test_forward_takes_model_and_batch():
    assert_close(call_model(Doubled(), Unknown(X), lambda model, batch: model(batch.x, 3.0)), 2 * X + 3)


def test_unknown_kind_of_batch():
    with pytest.raises(TypeError, match=r"run Doubled on a batch of type Unknown.*forward=lambda model, batch"):
        call_model(Doubled(), Unknown(X))


@pytest.mark.parametrize("batch", [[], ()])
def test_empty_batch(batch):
    with pytest.raises(ValueError, match=f"An empty {type(batch).__name__} came as a batch"):
        call_model(Doubled(), batch)


def test_the_batch_follows_the_model():
    model = nn.Linear(2, 2, device="meta")
    assert call_model(model, (X, X)).device.type == "meta"
    assert call_model(model, {"input": X}).device.type == "meta"


def test_move_to_keeps_the_structure():
    pair = namedtuple("pair", "x y")
    meta = torch.device("meta")
    moved = move_to({"a": pair(X, 1), "b": (X, [X]), "c": "text", "d": Unknown(X)}, meta)
    assert isinstance(moved["a"], pair)
    assert moved["a"].x.device == meta
    assert moved["a"].y == 1
    assert moved["b"][1][0].device == meta
    assert moved["c"] == "text"
    assert moved["d"].x is X
    assert move_to(X, None) is X


def test_move_to_asks_objects_that_can_move_themselves():
    class Packed:
        def to(self, device):
            return f"packed on {device}"

    assert move_to([Packed()], torch.device("meta")) == ["packed on meta"]


def test_device_of_buffers_counts():
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) is None
