"""ReLU in other spellings, and what looks like it and is none."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn

from bn_lightning.errors import NoSiteError
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.tracing import ops, rectifiers

ZERO = torch.zeros(())
SPELLINGS = {
    "maximum": lambda x: torch.maximum(x, ZERO),
    "maximum like": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x, x.new_zeros(1)),
    "max method": lambda x: x.max(other=ZERO),
    "zero first": lambda x: torch.maximum(ZERO, x),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clamp method": lambda x: x.clamp(0.0),
    "clamp tensor": lambda x: x.clamp(min=ZERO),
    "clamp in place": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, 0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where turned": lambda x: torch.where(x <= 0, ZERO, x),
    "where method": lambda x: x.where(x > 0, torch.zeros_like(x)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "mask": lambda x: x * (x > 0),
    "mask first": lambda x: (x > 0).float() * x,
    "mask in place": lambda x: x.mul_(x > 0),
}
OTHERS = {
    "hardtanh": lambda x: x.clamp(0, 1),
    "upper bound": lambda x: x.clamp(max=0),
    "a floor": lambda x: x.clamp(min=1e-6),
    "a floor by where": lambda x: torch.where(x > 0.1, x, 0.1),
    "maximum of a bound": lambda x: torch.maximum(x, torch.ones(1)),
    "absolute": lambda x: torch.where(x > 0, x, -x),
    "along an axis": lambda x: x + x.max(1, keepdim=True).values,
    "of another sign": lambda x: torch.where(x.flip(0) > 0, x, 0.0),
    "square": lambda x: x * (x > 0.5),
}


def network(activation) -> Function:
    return Function(lambda m, x: m.b(activation(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_relu_gets_its_norm_on_the_layer_before_it(name):
    model, x = network(SPELLINGS[name]), torch.randn(8, 4)
    (site,) = sites_of(model, x)
    assert (site.op.replace("threshold", "relu"), site.layer, site.attach) == ("relu", "a", "producer")
    assert (site.decision, site.channels) == ("insert", 6)
    insert_batch_norm(model, (x,))
    expected = F.linear(F.batch_norm(x @ model.a.weight.T, None, None, training=True).relu(), model.b.weight)
    torch.testing.assert_close(model(x), expected + model.b.bias)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_relu_is_no_site(name):
    with pytest.raises(NoSiteError, match="No nonlinearity was called"):
        sites_of(network(OTHERS[name]), torch.randn(8, 4))


def test_a_maximum_of_two_branches_is_no_relu_even_where_one_of_them_is_zero():
    model = Function(lambda m, x: m.c(torch.maximum(m.a(x), m.b(x))), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.ReLU())
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    assert [site.op for site in sites_of(model, torch.randn(8, 4))] == ["relu"]  # the module c alone
    assert sites_of(model, torch.randn(8, 4))[0].name == "c"


def test_a_bounded_relu_and_a_leaky_one_are_called_by_their_names():
    six = sites_of(network(lambda x: x.clamp(0, 6)), torch.randn(8, 4))
    leaky = sites_of(network(lambda x: torch.where(x > 0, x, 0.1 * x)), torch.randn(8, 4))
    bent = sites_of(network(lambda x: torch.where(x > 0, x, torch.exp(x) - 1)), torch.randn(8, 4))
    assert [(site.op, site.attach) for site in (*six, *leaky, *bent)] == [
        ("relu6", "producer"),
        ("leaky_relu", "producer"),
        ("where", "producer"),
    ]


@pytest.mark.parametrize("name", [name for name in SPELLINGS if "clamp" in name or name in ("maximum", "max", "clip")])
def test_behind_a_sum_the_norm_goes_into_the_call_if_its_first_argument_is_the_sum(name):
    model = Function(lambda m, x: m.b(SPELLINGS[name](x + m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    x = torch.randn(8, 4)
    insert_batch_norm(model, (x,))
    expected = model.b(F.batch_norm(x + F.linear(x, model.a.weight, model.a.bias), None, None, training=True).relu())
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", ["zero first", "where", "mask", "masked_fill"])
def test_behind_a_sum_other_spellings_are_skipped_and_cannot_be_insisted_on(name):
    model = Function(lambda m, x: m.b(SPELLINGS[name](x + m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    (site,) = sites_of(model, torch.randn(8, 4))
    assert site.decision == "skip"
    assert "relu is spelled with other functions" in site.reason
    assert site.channels == 0


def test_after_the_nonlinearity_a_selection_cannot_be_reached():
    (site,) = sites_of(network(SPELLINGS["where"]), torch.randn(8, 4), placement="after")
    assert "relu is spelled with other functions" in site.reason
    (clamp,) = sites_of(network(SPELLINGS["clamp"]), torch.randn(8, 4), placement="after")
    assert (clamp.attach, clamp.decision) == ("call", "insert")


def test_calls_that_are_no_relu_count_towards_the_number_of_the_call():
    def run(model: Function, x: Tensor) -> Tensor:
        x = x.clamp(-5, 5) + model.a(x)
        return model.b(x.clamp(min=0))

    model, x = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), 3 * torch.randn(8, 4)
    (site,) = sites_of(model, x)
    assert (site.function, site.call_index) == ("torch.Tensor.clamp", 1)
    insert_batch_norm(model, (x,))
    summed = x.clamp(-5, 5) + F.linear(x, model.a.weight, model.a.bias)
    torch.testing.assert_close(model(x), model.b(F.batch_norm(summed, None, None, training=True).relu()))


def test_a_nonlinearity_of_a_parameter_is_listed_counted_and_never_normalised():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.b(F.softplus(model.scale) * F.softplus(x + model.a(x)) * F.softplus(model.table))

    model = Function(
        run,
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 2),
        scale=nn.Parameter(torch.zeros(1)),
        table=torch.zeros(4),
    )
    of_scale, of_data, of_table = sites_of(model, torch.randn(8, 4))
    assert [site.call_index for site in (of_scale, of_data, of_table)] == [0, 1, 2]
    assert of_data.decision == "insert"
    assert all("no affine layer" in site.reason for site in (of_scale, of_table))


def test_a_weight_behind_a_nonlinearity_is_still_a_weight():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.b(F.relu(x @ F.softplus(model.weight)))

    softplus, relu = sites_of(
        Function(run, b=nn.Linear(3, 1), weight=nn.Parameter(torch.ones(4, 3))), torch.randn(8, 4)
    )
    assert (softplus.op, softplus.decision) == ("softplus", "skip")
    assert (relu.op, relu.layer, relu.decision) == ("relu", "weight", "insert")


def test_every_rectifier_has_a_full_name_to_be_met_by():
    for function in (torch.maximum, torch.max, torch.clamp, torch.Tensor.clamp_, torch.clamp_min, torch.Tensor.clip):
        assert ops.NONLINEARITIES[ops.FULL_NAMES[function]] is function


def test_without_values_a_selection_is_not_recognised_and_a_number_still_is():
    x = torch.zeros(2, device="meta")
    assert rectifiers.called("clamp", (x, 0), {}, lambda tensor: True) == ("relu", x)
    assert rectifiers.called("maximum", (x, torch.zeros(2, device="meta")), {}, lambda tensor: True) is None
    assert rectifiers.called("clamp", (torch.zeros(2, dtype=torch.long), 0), {}, lambda tensor: True) is None
    assert rectifiers.called("clamp", (), {"min": 0}, lambda tensor: True) is None
    assert rectifiers.name_of("where", x, x) == ""
