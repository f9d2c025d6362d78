import copy
import pickle

import pytest
import torch
from torch import nn

from bn_lightning.surgery.local_response_norm import (
    MARK,
    follow_state_dicts,
    remove_as_in,
    remove_local_response_norm,
    restore_local_response_norm,
)


class Own(nn.LocalResponseNorm):
    pass


def net(kind=nn.LocalResponseNorm) -> nn.Sequential:
    torch.manual_seed(0)
    shared = kind(3, alpha=5.0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), shared, nn.Sequential(nn.ReLU(), kind(5), shared)).double()


X = torch.linspace(-2, 2, 72, dtype=torch.float64).reshape(1, 2, 6, 6)


@pytest.mark.parametrize("kind", [nn.LocalResponseNorm, nn.CrossMapLRN2d, Own])
def test_removed_in_both_modes_and_put_back(kind):
    model = net(kind)
    keys, before = list(model.state_dict()), model(X)
    assert remove_local_response_norm(model) == ("1", "2.1")
    assert remove_local_response_norm(model) == ()
    plain = model[0](X).relu()
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(X), plain, rtol=0, atol=0)
    assert not torch.equal(before, plain)
    assert isinstance(model[1], nn.CrossMapLRN2d if kind is nn.CrossMapLRN2d else nn.LocalResponseNorm)
    assert restore_local_response_norm(model) == ("1", "2.1")
    torch.testing.assert_close(model(X), before, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    assert type(model[1]) is kind


def test_limited_to_names():
    model = net()
    assert remove_local_response_norm(model, only={"2.1"}) == ("2.1",)
    assert type(model[1]) is nn.LocalResponseNorm


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_without(again):
    model = net()
    remove_local_response_norm(model)
    torch.testing.assert_close(again(model)(X), model(X), rtol=0, atol=0)
    assert restore_local_response_norm(again(model)) == ("1", "2.1")


def test_a_plain_model_refuses_the_weights_instead_of_computing_something_else():
    model = net()
    remove_local_response_norm(model)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1.bn_lightning_removed"'):
        net().load_state_dict(model.state_dict())


def test_a_model_that_follows_takes_the_removal_over():
    model = net()
    remove_local_response_norm(model, only={"2.1"})
    outer = nn.ModuleDict({"inner": net()})
    handle = follow_state_dicts(outer["inner"])
    outer.load_state_dict({f"inner.{key}": value for key, value in model.state_dict().items()})
    torch.testing.assert_close(outer["inner"](X), model(X), rtol=0, atol=0)
    handle.remove()
    other = net()
    follow_state_dicts(other).remove()
    with pytest.raises(RuntimeError, match=MARK):
        other.load_state_dict(model.state_dict())


def test_as_in_a_state_dict():
    model = net()
    assert remove_as_in(model, {"0.weight": None, f"1.{MARK}": None}) == ("1",)


def test_exported_and_compiled_without():
    model = net().eval()
    remove_local_response_norm(model)
    exported = torch.export.export(model, (X,))
    torch.testing.assert_close(exported.module()(X), model(X))
    assert not any("avg_pool" in str(node.target) for node in exported.graph.nodes)
