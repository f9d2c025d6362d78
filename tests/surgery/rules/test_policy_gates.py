"""Units as gates: what counts is what a module computes, not what it is called."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn


def unit(function) -> nn.Module:
    class Unit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Unit()


GATES = {
    "scaled sigmoid": lambda x: 2 * torch.sigmoid(0.5 * x),
    "sigmoid by tanh": lambda x: 0.5 * (1 + torch.sigmoid(x)),
    "swish": lambda x: x * torch.sigmoid(x),
    "new gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * x)),
    "hard sigmoid": lambda x: F.relu6(x + 3) / 6,
}
CONTENTS = {
    "scaled tanh": lambda x: 1.7 * torch.tanh(0.6 * x),
    "squared relu": lambda x: F.relu(x) ** 2,
    "relu6": lambda x: F.relu6(x),
}


def gated(activation: nn.Module) -> Function:
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(4, 6), "c": nn.Linear(6, 1)}
    return Function(lambda m, x: m.c(m.act(m.a(x)) * m.b(x)), act=activation, **layers)


@pytest.mark.parametrize("name", GATES)
def test_a_unit_that_holds_a_gate_is_one_where_it_weighs_another_branch(name):
    (site,) = sites_of(gated(unit(GATES[name])), torch.randn(8, 4))
    assert (site.op, site.decision) == ("unit", "skip")
    assert "a gate" in site.reason


@pytest.mark.parametrize("name", GATES)
def test_elsewhere_the_same_unit_is_an_activation(name):
    model = nn.Sequential(nn.Linear(4, 6), unit(GATES[name]), nn.Linear(6, 1))
    assert [site.decision for site in sites_of(model, torch.randn(8, 4))] == ["insert"]


@pytest.mark.parametrize("name", CONTENTS)
def test_a_unit_without_a_gate_is_content(name):
    (site,) = sites_of(gated(unit(CONTENTS[name])), torch.randn(8, 4))
    assert site.decision == "insert"


def test_a_hard_sigmoid_written_out_is_a_gate():
    model = Function(
        lambda m, x: m.c(F.relu6(m.a(x) + 3) / 6 * m.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 1)
    )
    (site,) = sites_of(model, torch.randn(8, 4))
    assert "a gate" in site.reason


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_the_halves_of_one_layer_are_two_branches(name):
    def run(model: Function, x: Tensor) -> Tensor:
        content, gate = model.a(x).chunk(2, -1)
        return model.b(content * getattr(F, name)(gate))

    (site,) = sites_of(Function(run, a=nn.Linear(4, 12), b=nn.Linear(6, 1)), torch.randn(8, 4))
    assert "a gate: its output is multiplied with another branch" in site.reason


def test_a_written_out_silu_that_weighs_another_branch_is_a_gate():
    def run(model: Function, x: Tensor) -> Tensor:
        h = model.a(x)
        return model.c(h * torch.sigmoid(h) * model.b(x))

    model = Function(run, a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 1))
    assert ["a gate" in site.reason for site in sites_of(model, torch.randn(8, 4))] == [True]


def test_what_is_weighed_by_a_gate_made_from_itself_keeps_its_norm():
    def run(model: Function, x: Tensor) -> Tensor:
        h = F.silu(model.a(x))
        return model.c(h * torch.sigmoid(model.b(h)))

    model = Function(run, a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 1))
    assert [(site.op, site.decision) for site in sites_of(model, torch.randn(8, 4))] == [
        ("silu", "insert"),
        ("sigmoid", "skip"),
    ]
