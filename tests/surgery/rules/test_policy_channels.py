"""No axis is taken for the channels where these were picked out or reduced."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import nn


@pytest.mark.parametrize(
    ("gone", "op"),
    [
        (lambda h: h[..., 1], "getitem"),
        (lambda h: h.select(-1, 0) * 2, "select"),
        (lambda h: h.unbind(-1)[0], "unbind"),
        (lambda h: h.mean(-1), "mean"),
        (lambda h: h.amax(-1) + 1, "amax"),
    ],
)
def test_a_nonlinearity_behind_one_channel_or_a_reduction_of_them_is_skipped(gone, op):
    model = Function(lambda m, x: m.c(F.relu(gone(m.a(x)))), a=nn.Linear(4, 8), c=nn.Linear(20, 1))
    (site,) = sites_of(model, torch.randn(16, 20, 4))
    assert site.decision == "skip"
    assert f"{op} picked one of the channels or reduced them" in site.reason


@pytest.mark.parametrize(
    "kept", [lambda h: h[:, 1], lambda h: h.mean(1), lambda h: h[..., 1:], lambda h: h.unbind(1)[0]]
)
def test_channels_that_are_still_there_get_their_norm(kept):
    model = Function(lambda m, x: m.c(F.relu(kept(m.a(x)))), a=nn.Linear(4, 8), c=nn.LazyLinear(1))
    model(torch.randn(16, 20, 4))
    (site,) = sites_of(model, torch.randn(16, 20, 4))
    assert (site.decision, site.channel_dim, site.channel_dim_source) == ("insert", -1, "traced")
