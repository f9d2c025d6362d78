"""Which layers a norm can be hooked on, and which norms of a model count as normalising already."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn

from bn_lightning.surgery.rules.policy import Policy
from bn_lightning.surgery.tracing.trace import trace_calls


def policy_of(model: nn.Module, *args: Tensor, **options) -> tuple[Policy, list]:
    trace = trace_calls(model, lambda: model(*args))
    return Policy(trace, **options), [node for node in trace.nodes if node.role == "nonlinearity"]


def test_branches_are_the_last_layers_before_a_sum_in_order():
    def run(model: Function, x: Tensor) -> Tensor:
        h = F.relu(model.a(x))
        shortcut = model.short(h)
        return model.head(F.relu(model.c(F.relu(model.b(h))) + F.dropout(shortcut, 0.1).view(-1, 4)))

    layers = {name: nn.Linear(4, 4) for name in ("a", "short", "b", "c", "head")}
    policy, (first, second, third) = policy_of(Function(run, **layers), torch.randn(6, 4))
    assert [policy.branches(node) for node in (first, second, third)] == [("a",), ("b",), ("short", "c")]


def test_a_branch_that_is_no_layers_output_is_left_out():
    class Dense(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    def run(model: Function, x: Tensor) -> Tensor:
        parts = [model.a(x), x @ model.weight, model.doubled(x) / 2, model.norm(model.b(x)), F.relu(model.a(x))]
        return model.head(F.relu(torch.cat([*parts, x], -1)))

    model = Function(
        run,
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        doubled=Dense(4, 4),
        norm=nn.BatchNorm1d(4),
        weight=nn.Parameter(torch.randn(4, 4)),
        head=nn.Linear(24, 1),
    )
    policy, nodes = policy_of(model, torch.randn(6, 4))
    assert policy.branches(nodes[-1]) == ("a",)


def test_the_layers_that_read_the_example_and_the_axis_that_they_mix():
    def run(model: Function, image: Tensor, row: Tensor) -> Tensor:
        h = model.conv(image.permute(0, 3, 1, 2)).mean((2, 3)) + model.linear(row) + model.padded(row[:, None]).sum(-1)
        return model.both(row) + model.both(model.widen(h))

    layers = {
        "conv": nn.Conv2d(3, 4, 3),
        "linear": nn.Linear(5, 4),
        "padded": nn.Conv1d(1, 4, 3, padding="same", padding_mode="circular"),
        "widen": nn.Linear(4, 5),
        "both": nn.Linear(5, 5),  # also reads a hidden layer
    }
    policy, _ = policy_of(Function(run, **layers), torch.randn(6, 8, 8, 3), torch.randn(6, 5))
    found = [(layer, node.shape, node.channel_dim) for layer, node in policy.readers_of_inputs()]
    assert found == [("conv", (6, 3, 8, 8), -3), ("linear", (6, 5), -1), ("padded", (6, 1, 5), -2)]


def test_whole_numbers_buffers_and_functional_weights_are_no_inputs_to_normalise():
    def run(model: Function, tokens: Tensor, x: Tensor) -> Tensor:
        return model.a(model.embed(tokens)) + model.b(model.table) + F.linear(x, model.weight)

    model = Function(
        run,
        embed=nn.Embedding(9, 4),
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 3),
        table=torch.randn(6, 4),
        weight=nn.Parameter(torch.randn(3, 4)),
    )
    policy, _ = policy_of(model, torch.randint(0, 9, (6,)), torch.randn(6, 4))
    assert policy.readers_of_inputs() == ()


class RMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class ChannelLayerNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


class NormalisedNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean()


def with_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 1))


NORMS = {
    "batch": nn.BatchNorm1d(4),
    "layer": nn.LayerNorm(4),
    "group": nn.GroupNorm(2, 4),
    "rms": nn.RMSNorm(4),
    "own rms": RMSNorm(4),
    "own layer": ChannelLayerNorm(),
}


@pytest.mark.parametrize("kind", NORMS)
def test_only_norms_of_the_kinds_asked_for_count(kind):
    model, x = with_norm(NORMS[kind]), torch.randn(8, 4)
    name = kind.removeprefix("own ")
    others = {"batch", "layer", "group", "instance", "rms"} - {name}
    for existing in ({name}, {"batch", "layer", "group", "instance", "rms"}):
        (site,) = sites_of(model, x, existing=existing)
        assert f"already normalised by {name}_norm in '1'" in site.reason
    assert [site.decision for site in sites_of(model, x, existing=others)] == ["insert"]


def test_a_norm_behind_counts_in_the_same_way():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 1))
    assert "normalised right after by layer_norm" in sites_of(model, torch.randn(8, 4))[0].reason
    assert sites_of(model, torch.randn(8, 4), existing=["batch"])[0].decision == "insert"


def test_behind_a_norm_that_does_not_count_another_one_may():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    assert "batch_norm in '1'" in sites_of(model, torch.randn(8, 4), existing=["batch"])[0].reason


def test_a_norm_that_is_scaled_by_another_branch_still_normalises():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.head(F.relu(model.scale(x) * model.norm(model.a(x)) + model.shift(x)))

    layers = {name: nn.Linear(4, 4) for name in ("a", "scale", "shift", "head")}
    (site,) = sites_of(Function(run, norm=nn.BatchNorm1d(4), **layers), torch.randn(8, 4))
    assert "already normalised by batch_norm in 'norm'" in site.reason


def test_a_module_is_no_norm_by_its_name_alone():
    model = with_norm(NormalisedNoise())
    assert [site.decision for site in sites_of(model, torch.randn(8, 4))] == ["insert"]


def test_a_loop_over_one_layer_is_one_site_on_it():
    def run(model: Function, x: Tensor) -> Tensor:
        return model.b(sum(torch.relu(model.a(x[:, t])) for t in range(x.shape[1])))

    model = Function(run, a=nn.Linear(4, 3), b=nn.Linear(3, 1))
    (site,) = sites_of(model, torch.randn(8, 5, 4))
    assert (site.layer, site.attach, site.visits) == ("a", "producer", 5)
