"""Planning stays linear in the size of the model: counted in look-ups of operations, which no clock disturbs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from function_model import Function
from torch import Tensor, nn

from bn_lightning.surgery.rules.policy import Policy
from bn_lightning.surgery.tracing.graph import Node, Trace
from bn_lightning.surgery.tracing.trace import trace_calls


class Counting(tuple):
    looked_up = 0

    def __getitem__(self, index: int) -> Node:  # type: ignore[override]
        Counting.looked_up += 1
        return super().__getitem__(index)


def layers(number: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(number))


def post_activation(model: Function, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = F.relu(x + layer(x))
    return model.head(x)


def pre_activation(model: Function, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = x + layer(F.gelu(x))
    return model.head(x)


def excited(model: Function, x: Tensor) -> Tensor:
    for layer in model.layers:
        h = F.silu(layer(x))
        x = x + h * torch.sigmoid(layer(h))
    return model.head(x)


def recurrent(model: Function, x: Tensor) -> Tensor:
    h = x
    for _ in model.layers:
        h = torch.tanh(model.head(h) + x)
    return model.head(h)


def written_out(model: Function, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = layer(x)
        x = x * torch.tanh(F.softplus(x))
    return model.head(x)


def decoder(model: Function, x: Tensor) -> Tensor:
    x = x[:, None].expand(-1, 3, -1)
    for layer in model.layers:
        x = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
        x = x + F.relu(layer(x))
    return model.head(x)


def looked_up(run, number: int) -> int:
    model = Function(run, layers=layers(number), head=nn.Linear(4, 4))
    trace = trace_calls(model, lambda: model(torch.randn(3, 4)))
    counting = Trace(**{**{field.name: getattr(trace, field.name) for field in dataclasses.fields(trace)}, "nodes": ()})
    counting = dataclasses.replace(counting, nodes=Counting(trace.nodes))
    Counting.looked_up = 0
    policy = Policy(counting)
    for node in trace.nodes:
        if node.role == "nonlinearity":
            policy.skip_reason(node)
            policy.layer(node)
            policy.producer(node)
    return Counting.looked_up


@pytest.mark.parametrize(
    "run", [post_activation, pre_activation, excited, recurrent, written_out, decoder], ids=lambda run: run.__name__
)
def test_twice_the_layers_cost_twice_the_look_ups(run):
    small, large = looked_up(run, 40), looked_up(run, 80)
    assert large < 2.2 * small
