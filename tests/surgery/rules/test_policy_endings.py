"""Heads and losses: where the values themselves are meant, no norm belongs."""

import pytest
import torch
import torch.nn.functional as F
from function_model import Function, sites_of
from torch import Tensor, nn
from torch.distributions import Gamma, Normal, Poisson

LABEL = torch.randn(8, 3).abs()
SIGN = LABEL.round().sign().mul(2).sub(1)


def heads(run) -> Function:
    return Function(run, a=nn.Linear(4, 5), mu=nn.Linear(5, 3), rho=nn.Linear(5, 3))


def body(model: Function, x: Tensor) -> Tensor:
    return torch.tanh(model.a(x))


LIKELIHOODS = {
    "normal": lambda m, h, y: -Normal(m.mu(h), F.softplus(m.rho(h))).log_prob(y).mean(),
    "normal with a floor": lambda m, h, y: -Normal(m.mu(h), F.softplus(m.rho(h)) + 1e-4).log_prob(y).mean(),
    "normal by hand": lambda m, h, y: ((y - m.mu(h)) / F.softplus(m.rho(h))).square().mean(),
    "gamma": lambda m, h, y: -Gamma(F.softplus(m.mu(h)) + 0.1, F.softplus(m.rho(h)) + 0.1).log_prob(y + 0.1).sum(),
    "poisson of relu": lambda m, h, y: -Poisson(F.relu(m.rho(h)) + 1e-3).log_prob(y.round()).mean(),
    "poisson of elu": lambda m, h, y: -Poisson(F.elu(m.rho(h)) + 1.001).log_prob(y.round()).mean(),
    "log of relu": lambda m, h, y: (y * torch.log(F.relu(m.rho(h)))).sum(),
    "temperature": lambda m, h, y: F.cross_entropy(m.mu(h) / F.softplus(m.rho(h)), y.argmax(1)),
    "distribution returned": lambda m, h, y: (m.mu(h), F.softplus(m.rho(h))),
    "scaled relu": lambda m, h, y: 2 * F.relu(m.rho(h)) + 1,
    "poisson loss": lambda m, h, y: F.poisson_nll_loss(F.softplus(m.rho(h)), y, log_input=False),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_rate_or_scale_of_a_likelihood_is_a_head(name):
    model = heads(lambda m, x, y: LIKELIHOODS[name](m, body(m, x), y))
    sites = sites_of(model, torch.randn(8, 4), LABEL)
    assert {site.op for site in sites if site.decision == "insert"} == {"tanh"}
    assert all("output head" in site.reason for site in sites if site.decision == "skip")


HINGES = {
    "hinge": lambda m, h, y: F.relu(1 - y * m.mu(h)).mean(),
    "clamped hinge": lambda m, h, y: torch.clamp(1 - y * m.mu(h), min=0).sum(1).mean() + m.mu.weight.square().sum(),
    "soft margin": lambda m, h, y: F.softplus(-y * m.mu(h)).mean(),
    "insensitive": lambda m, h, y: F.relu((m.mu(h) - y).abs() - 0.1),
    "ranking": lambda m, h, y: F.relu(0.2 - m.mu(h) + m.rho(h)).mean() + 0.1 * m.mu(h).mean(),
    "weighted hinge": lambda m, h, y: (F.relu(1 - y * m.mu(h)) * F.softmax(m.rho(h), -1)).sum(1),
}


@pytest.mark.parametrize("name", HINGES)
def test_a_score_compared_with_a_target_is_part_of_the_loss(name):
    model = heads(lambda m, x, y: HINGES[name](m, body(m, x), y))
    sites = sites_of(model, torch.randn(8, 4), SIGN)
    assert [site.decision for site in sites] == ["insert", "skip"]
    assert "output head" in sites[1].reason


FEATURES = {
    "distance of two towers": lambda m, x, y: (F.relu(m.a(x)) - F.relu(m.a(y))).square().sum(1),
    "cosine of two towers": lambda m, x, y: F.cosine_similarity(F.relu(m.a(x)), F.relu(m.a(y))),
    "mean distance": lambda m, x, y: (F.relu(m.a(x)) - F.relu(m.a(y))).square().sum(1).sqrt().mean(),
    "a residual tower": lambda m, x, y: (F.relu(x + m.b(x)) - y).square().sum(1),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_meet_in_a_distance_keep_their_norms(name):
    model = Function(lambda m, x, y: FEATURES[name](m, x, y), a=nn.Linear(4, 5), b=nn.Linear(4, 4))
    sites = sites_of(model, torch.randn(8, 4), torch.randn(8, 4))
    assert {site.decision for site in sites} == {"insert"}


def test_a_softplus_between_layers_is_no_head():
    model = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 1))
    assert [site.decision for site in sites_of(model, torch.randn(8, 4))] == ["insert"]


class ScaledTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.tanh(x / 2)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_a_module_that_saturates_is_a_head_and_one_that_does_not_need_not_be():
    def run(model: Function, x: Tensor, y: Tensor) -> Tensor:
        return (model.act(model.a(x)) - y).square().sum(1)

    args = (torch.randn(8, 4), torch.randn(8, 5))
    (bounded,) = sites_of(Function(run, a=nn.Linear(4, 5), act=ScaledTanh()), *args)
    (unbounded,) = sites_of(Function(run, a=nn.Linear(4, 5), act=Swish()), *args)
    assert "output head: no affine" in bounded.reason
    assert unbounded.decision == "insert"
