"""Activations written out in several operations, and modules that are one."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn

from bn_lightning.surgery.insert import insert_batch_norm

UNITS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": lambda x: x * torch.sigmoid(1.7 * x),
    "gelu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5)),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "content and gate": lambda x: torch.tanh(x) * torch.sigmoid(x),
}


@pytest.mark.parametrize("name", UNITS)
def test_one_norm_on_the_layer_reaches_every_factor(name):
    activation = UNITS[name]
    model = Function(lambda m, x: m.b(activation(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = torch.randn(8, 4)
    sites = sites_of(model, x)
    assert [(site.layer, site.attach) for site in sites if site.decision == "insert"] == [("a", "producer")]
    assert all("one activation with" in site.reason for site in sites if site.decision == "skip")
    insert_batch_norm(model, (x,))
    normalised = F.batch_norm(F.linear(x, model.a.weight), None, None, training=True)
    torch.testing.assert_close(model(x), model.b(activation(normalised)))


@pytest.mark.parametrize("name", [name for name in UNITS if name != "content and gate"])
def test_where_the_layer_has_another_reader_the_unit_is_left_alone(name):
    def run(model: Function, x: Tensor) -> Tensor:
        h = model.a(x)
        return model.b(UNITS[name](h)) + model.c(h)

    model = Function(run, a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(6, 2))
    sites = sites_of(model, torch.randn(8, 4))
    assert all(site.decision == "skip" for site in sites)
    assert any("use its module form" in site.reason for site in sites)


def test_where_the_layers_output_is_returned_the_unit_is_left_alone():
    def run(model: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        h = model.a(x)
        return model.b(h * torch.sigmoid(h)), h

    (site,) = sites_of(Function(run, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), torch.randn(8, 4))
    assert "one activation (x·sigmoid(x))" in site.reason


def test_behind_a_sum_or_for_a_norm_after_it_a_unit_is_left_alone():
    summed = Function(lambda m, x: m.b(UNITS["silu"](x + m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    plain = Function(lambda m, x: m.b(UNITS["silu"](m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    for sites in (sites_of(summed, torch.randn(8, 4)), sites_of(plain, torch.randn(8, 4), placement="after")):
        assert ["use its module form" in site.reason for site in sites] == [True]


def test_a_unit_that_reads_a_second_tensor_is_none():
    def run(model: Function, x: Tensor) -> Tensor:
        h = model.a(x)
        return model.b(h * torch.sigmoid(h + x))

    sites = sites_of(Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.randn(8, 4))
    assert [site.decision for site in sites] == ["skip"]


def test_a_layer_called_twice_before_the_same_unit_has_one_norm():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.b(sum(UNITS["silu"](model.a(part)) for part in (x, -x)))

    model = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    assert [(site.attach, site.visits) for site in sites_of(model, torch.randn(8, 4))] == [("producer", 2)]


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, torch.zeros_like(x))


def test_a_module_without_parameters_that_bends_is_an_activation():
    model = nn.Sequential(nn.Linear(4, 5), Sine(), nn.Linear(5, 5), Clamped(), nn.Linear(5, 1))
    assert [(site.name, site.op, site.decision) for site in sites_of(model, torch.randn(8, 4))] == [
        ("1", "sine", "insert"),
        ("3", "relu", "insert"),
    ]


class Positions(nn.Module):
    """Adds a wave of constants, and weighs by a bent constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("times", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * F.softplus(self.times) + torch.sin(self.times)


def test_a_module_that_bends_constants_alone_is_no_activation():
    model = nn.Sequential(nn.Linear(4, 5), Positions(), nn.Linear(5, 1))
    assert [(site.op, site.decision) for site in sites_of(model, torch.randn(8, 4))] == [("softplus", "skip")]


class SquareRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu() ** 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 2 * x.relu()


def test_inside_a_custom_autograd_function_there_is_no_site():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.c(F.relu(model.b(SquareRelu.apply(x + model.a(x)))))

    model = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 3), c=nn.Linear(3, 1))
    assert [(site.layer, site.decision) for site in sites_of(model, torch.randn(8, 4))] == [("b", "insert")]
