"""Norms on what a layer reads, alone and beside one on its output."""

import copy
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FunctionalMLP
from torch import Tensor, nn

from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.plan import InsertionPlan, Site
from bn_lightning.surgery.planning import plan_insertion


def input_site(layer: str, shape: tuple[int, ...], axis: int) -> Site:
    return Site(
        name=f"{layer}.input",
        op="input",
        layer=layer,
        owner="",
        function="",
        activation="",
        call_index=0,
        shape=shape,
        channels=shape[axis],
        channel_dim=axis,
        channel_dim_source="traced",
        visits=1,
        attach="input",
        decision="insert",
        reason="what the first layer reads",
    )


def with_input_norm(model: nn.Module, x: Tensor, layer: str, axis: int, **changes) -> InsertionPlan:
    plan = plan_insertion(model, (x,))
    sites = (input_site(layer, tuple(x.shape), axis), *plan.sites)
    return apply_plan(model, replace(plan, sites=sites, **changes))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)))


class Tokens(FunctionalMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(input=x)))


@pytest.mark.parametrize(
    ("make", "layer", "shape", "axis"),
    [
        (FunctionalMLP, "first", (6, 5), -1),
        (Images, "conv", (4, 3, 7, 7), -3),
        (Tokens, "first", (4, 6, 5), -1),
    ],
)
def test_the_layer_reads_normalised_inputs_and_keeps_its_norm_behind(make, layer, shape, axis):
    model, x = make().double(), torch.randn(shape, dtype=torch.float64) * 3 + 5
    plain = copy.deepcopy(model)
    plan = with_input_norm(model, x, layer, axis)
    assert {site.attach for site in plan.inserted} == {"input", "producer"}
    host = model.get_submodule(layer)
    assert len(host.bn_lightning_norm) == 2
    others = [dim for dim in range(x.ndim) if dim != x.ndim + axis]
    mean, variance = x.mean(others, keepdim=True), x.var(others, correction=0, keepdim=True)
    seen: list[Tensor] = []
    host.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    behind = plain.get_submodule(layer)((x - mean) / (variance + 1e-5).sqrt())
    channel = 1 if axis == -3 else behind.ndim - 1
    rest = [dim for dim in range(behind.ndim) if dim != channel]
    expected = (behind - behind.mean(rest, keepdim=True)) / (behind.var(rest, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(seen[0], expected)


def test_copies_pickles_checkpoints_and_removal():
    model, x = FunctionalMLP(), torch.randn(6, 5) * 3 + 5
    keys, expected = list(model.state_dict()), model(x)
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_pre_hooks_with_kwargs)) for m in model.modules()]
    plan = with_input_norm(model, x, "first", -1)
    model(x)
    model.eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    fresh = FunctionalMLP()
    apply_plan(fresh, InsertionPlan.from_dict(plan.to_dict()))
    fresh.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False), fresh.eval()):
        assert torch.equal(twin(x), model(x))
    untouched = FunctionalMLP()
    untouched.load_state_dict({name: value for name, value in model.state_dict().items() if "norm" not in name})
    with_input_norm(untouched, x, "first", -1)
    remove_batch_norm(untouched)
    assert list(untouched.state_dict()) == keys
    assert torch.equal(untouched(x), expected)
    assert [(dict(m._forward_pre_hooks), dict(m._forward_pre_hooks_with_kwargs)) for m in untouched.modules()] == hooks


def test_the_bias_of_a_layer_with_a_norm_in_front_only_is_trained_on():
    model, x = nn.Sequential(nn.Linear(5, 2)), torch.randn(6, 5)
    plan = InsertionPlan("before", "batch", "forward", (input_site("0", (6, 5), -1),))
    apply_plan(model, plan)
    assert model[0].bias.requires_grad
    model(x).sum().backward()
    assert model[0].bn_lightning_norm[0].weight.grad is not None


def test_an_input_norm_on_a_module_that_also_calls_a_function_with_a_norm():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.randn(4, 5)), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(x, self.weight) + self.shift(x))

    model, x = nn.Sequential(Layer(), nn.Linear(4, 1)), torch.randn(6, 5) + 3
    plan = plan_insertion(model, (x,))
    (call,) = plan.inserted
    assert (call.attach, call.owner) == ("call", "0")
    apply_plan(model, replace(plan, sites=(input_site("0", (6, 5), -1), *plan.sites)))
    model(x)
    inner, outer = model[0].bn_lightning_norm
    assert [inner.num_features, outer.num_features] == [5, 4]
    assert [int(norm.num_batches_tracked) for norm in (inner, outer)] == [1, 1]
    torch.testing.assert_close(inner.running_mean, 0.1 * x.mean(0))


def test_whole_numbers_are_refused():
    model = FunctionalMLP()
    with_input_norm(model, torch.randn(6, 5), "first", -1)
    with pytest.raises(TypeError, match=r"at 'first.input', received numbers of type torch.int64 .* x.float\(\)"):
        model(torch.ones(6, 5, dtype=torch.int64))


def test_an_input_norm_compiles_and_exports():
    model, x = FunctionalMLP(), torch.randn(6, 5)
    with_input_norm(model, x, "first", -1)
    model(x)
    model.eval()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
