import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bn_lightning.probes.layer_order import choose_layers, layers_in_order, noted_calls, owner_of


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(2, 1), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.first(self.first(x)))


def test_layers_come_in_the_order_of_the_forward_each_once():
    model = Backwards()
    with noted_calls(model) as order:
        model(torch.zeros(1, 2))
    model.unused(torch.zeros(1, 2))
    assert order == ["first", "last"]
    owned = layers_in_order(dict(model.named_parameters()), order)
    # The one that was not called comes behind the one registered before it.
    assert list(owned) == ["first", "last", "unused"]
    assert owned["last"] == ["last.weight", "last.bias"]


class OnlyAWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return x @ self.weight


def test_what_a_parametrization_computes_a_weight_from_belongs_to_the_layer():
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Tanh(), weight_norm(OnlyAWeight()))
    with noted_calls(model) as order:
        model(torch.zeros(1, 2))
    assert order == ["0", "2"]
    parameters = dict(model.named_parameters())
    owned = layers_in_order(parameters, order)
    weight = ["parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert owned == {"0": ["0.bias", *(f"0.{part}" for part in weight)], "2": [f"2.{part}" for part in weight]}
    assert choose_layers(owned, parameters, ["0", "2"]) == ["0", "2"]


def test_the_model_itself_may_be_parametrized():
    assert {owner_of(name) for name, _ in weight_norm(nn.Linear(2, 2)).named_parameters()} == {""}


def test_hooks_are_gone_after_an_error():
    model = Backwards()
    try:
        with noted_calls(model):
            model(torch.zeros(1, 5))
    except RuntimeError:
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
