import pytest
import torch
from torch import nn

from bn_lightning.errors import NormOptionError
from bn_lightning.surgery.planning import plan_insertion

X = torch.randn(8, 6)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 1))


@pytest.mark.parametrize("given", [X, (X,), (X, {}, 1), ((X,), [1])])
def test_further_examples_are_pairs(given):
    with pytest.raises(TypeError, match=r"more_examples holds pairs of args and kwargs, such as \[\(\(x,\), \{\}\)\]"):
        plan_insertion(mlp(), (X,), more_examples=[given])


def test_further_examples_may_have_no_keyword_arguments():
    assert plan_insertion(mlp(), (X,), more_examples=[((X,), None)]).num_examples == 2


def test_existing_norms_may_come_from_a_generator():
    kinds = (kind for kind in ("batch", "layer"))
    assert plan_insertion(mlp(), (X,), existing=kinds) == plan_insertion(mlp(), (X,), existing=["batch", "layer"])


@pytest.mark.parametrize("norm", [None, 3, nn.BatchNorm1d(5)])
def test_a_norm_is_a_name_or_a_factory(norm):
    with pytest.raises(NormOptionError, match=r"norm is one of batch, .* or a factory channels -> nn\.Module"):
        plan_insertion(mlp(), (X,), norm=norm)


def test_norm_options_are_values_by_name():
    with pytest.raises(NormOptionError, match=r"values by name, such as \{'momentum': 0.01\}; got \['eps'\]"):
        plan_insertion(mlp(), (X,), norm_options=["eps"])
