"""Whatever happens inside, the model and the generators come out as they went in."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.surgery.sandbox import (
    preserve_buffers,
    preserve_gradients,
    preserve_modes,
    preserve_random_state,
    sandbox,
)


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    net[3].eval()
    net[0].bias.grad = torch.ones(4)
    net[1].register_buffer("empty", None)
    return net


def draws():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002 - the global one is meant


def disturb(net):
    net.train()
    net(torch.randn(5, 3)).sum().backward()
    net[1].running_mean = torch.full((4,), 7.0)
    net[1].empty = torch.ones(1)
    net[3].running_var.zero_()
    draws()


def look(net):
    return (
        [module.training for module in net.modules()],
        {name: buffer.clone() for name, buffer in net.named_buffers()},
        {name: id(buffer) for name, buffer in net.named_buffers()},
        {name: id(parameter.grad) for name, parameter in net.named_parameters()},
        [parameter.grad.tolist() for parameter in net.parameters() if parameter.grad is not None],
    )


def assert_equal(after, before):
    for name, buffer in before[1].items():
        assert torch.equal(after[1][name], buffer), name
    assert after[1].keys() == before[1].keys()
    assert (after[0], *after[2:]) == (before[0], *before[2:])


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_everything_comes_back(error):
    net = model()
    before = look(net)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global one is meant
    random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global one is meant
    random.seed(1)
    try:
        with sandbox(net):
            disturb(net)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert_equal(look(net), before)
    assert draws() == expected


def test_gradients_start_as_none_inside():
    net = model()
    with preserve_gradients(net):
        assert all(parameter.grad is None for parameter in net.parameters())
    assert net[0].bias.grad is not None


def test_each_guard_guards_its_own_only():
    net = model()
    with preserve_modes(net):
        net[1].running_mean.fill_(3.0)
        net.eval()
    assert net[1].running_mean.tolist() == [3.0] * 4
    assert net.training
    assert not net[3].training
    with preserve_buffers(net):
        net[1].running_mean.fill_(4.0)
        net.eval()
    assert net[1].running_mean.tolist() == [3.0] * 4
    assert not net.training


def test_random_state_without_a_model():
    torch.manual_seed(0)
    with preserve_random_state():
        inside = torch.rand(1)
    assert torch.equal(torch.rand(1), inside)
