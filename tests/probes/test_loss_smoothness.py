"""Smoothness along the gradient: by definition, against quadratics, and under rescaled weights."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.loss_smoothness import loss_smoothness


def network(seed=0, norm=True, eps=1e-12):
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(6, eps=eps) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3)).double()


def batch(n=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def gradient_of(model, state):
    twin = copy.deepcopy(model)
    torch.set_rng_state(state)
    loss = loss_fn(twin, batch())
    loss.backward()
    return loss.item(), torch.cat([part.grad.flatten() for part in twin.parameters()])


@pytest.mark.parametrize(("direction", "sign"), [("descent", -1), ("ascent", 1)])
def test_every_number_is_the_definition_by_hand(direction, sign):
    model, state, sizes = network(), torch.get_rng_state(), (0.1, 0.4, 1.5)
    found = loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=sizes, direction=direction, normalised=False)
    loss, g = gradient_of(model, state)
    assert found.loss == pytest.approx(loss)
    assert found.gradient_norm == pytest.approx(g.norm().item())
    losses, changes = [], []
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    for size in sizes:
        twin = copy.deepcopy(model)
        nn.utils.vector_to_parameters(theta + sign * size * g, twin.parameters())
        there, h = gradient_of(twin, state)
        losses.append(there)
        changes.append((h - g).norm().item())
    assert found.losses == pytest.approx(losses)
    ratios = [change / (size * g.norm().item()) for change, size in zip(changes, sizes, strict=True)]
    assert found.numbers() == pytest.approx(
        {
            "smoothness_loss": loss,
            "smoothness_gradient_norm": g.norm().item(),
            "loss_range_min": min(losses),
            "loss_range_max": max(losses),
            "gradient_predictiveness_min": min(changes),
            "gradient_predictiveness_max": max(changes),
            "effective_beta": max(ratios),
        }
    )
    assert (found.samples, found.evaluations, found.state) == (60, 4, "")


class Quadratic(nn.Module):
    def __init__(self, curvatures):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))

    def forward(self, x):
        return (self.curvatures * self.w.square()).sum() / 2 + 0 * x.sum()


@settings(max_examples=20, deadline=None)
@given(curvatures=st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_beta_of_a_quadratic_is_its_curvature_along_the_gradient(curvatures):
    c = torch.tensor(curvatures, dtype=torch.float64)
    found = loss_smoothness(
        Quadratic(curvatures), [torch.ones(2)], loss_fn=lambda m, x: m(x), step_sizes=(0.1, 1, 10), normalised=False
    )
    # The gradient is c, the Hessian diag(c).
    assert found.path.beta == pytest.approx((c.square().norm() / c.norm()).item())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_rescaling_weights_before_a_norm_leaves_normalised_beta_and_the_loss(seed, scale):
    model, options = network(seed), {"loss_fn": loss_fn, "step_sizes": (1e-4,), "normalised": [["0.weight"]]}
    options["normalised_lengths"] = (1e-4,)
    state = torch.get_rng_state()
    plain, g = loss_smoothness(model, [batch()], **options), gradient_of(model, state)[1]
    weight = model[0].weight.detach().norm().item()
    with torch.no_grad():
        model[0].weight.mul_(scale)
    torch.set_rng_state(state)
    scaled, h = loss_smoothness(model, [batch()], **options), gradient_of(model, state)[1]
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-6)
    assert scaled.beta_normalised == pytest.approx(plain.beta_normalised, rel=1e-6)
    assert (h[:24].norm() * weight * scale).item() == pytest.approx((g[:24].norm() * weight).item(), rel=1e-6)


def test_raw_beta_does_not_survive_rescaling():
    model = network()
    model[4].requires_grad_(False)
    model[1].requires_grad_(False)
    options = {"loss_fn": loss_fn, "normalised_lengths": (1e-4,)}
    plain = loss_smoothness(model, [batch()], step_sizes=(1e-4,), **options)
    with torch.no_grad():
        model[0].weight.mul_(10)
    scaled = loss_smoothness(model, [batch()], step_sizes=(1e-4,), **options)
    assert scaled.loss == pytest.approx(plain.loss)
    assert scaled.path.beta == pytest.approx(plain.path.beta / 100, rel=1e-2)  # the steps differ
    assert scaled.beta_normalised == pytest.approx(plain.beta_normalised)


def test_without_norms_normalised_beta_is_raw_beta_at_equal_lengths():
    model = network(norm=False)
    plain = loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=(0.01,), normalised=False)
    length = 0.01 * plain.gradient_norm
    found = loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=(0.01,), normalised_lengths=(length,))
    assert found.beta_normalised == pytest.approx(plain.path.beta)
    assert "effective_beta_normalised" in found.numbers()


def test_a_point_with_a_non_finite_loss_is_kept_as_nan():
    def explodes(model, batch):
        loss = loss_fn(model, batch)
        return loss + (math.inf if model[0].weight.detach().abs().max() > 5 else 0.0)

    options = {"loss_fn": explodes, "normalised": False, "direction": "ascent"}
    found = loss_smoothness(network(), [batch()], step_sizes=(0.1, 1e4), **options)
    assert math.isfinite(found.losses[0])
    assert math.isnan(found.losses[1])
    assert math.isnan(found.path.loss_range)
    assert math.isfinite(found.loss)


def test_a_network_of_nan_gives_nan_everywhere():
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    found = loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=(0.1,))
    assert all(math.isnan(value) for value in found.numbers().values())
    assert found.state == ""


def test_a_dead_network_says_so_and_is_no_smooth_one():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=(0.1, 1.0))
    assert found.state == "dead"
    assert found.loss == pytest.approx(math.log(3))
    assert all(math.isnan(value) for name, value in found.numbers().items() if name != "smoothness_loss")


def test_nothing_of_the_model_moves():
    model = network()
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    loss_smoothness(model, [batch(), batch(seed=4)], loss_fn=loss_fn, learning_rate=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())


def test_cost_is_one_pass_a_point_and_one_for_the_gradient():
    found = loss_smoothness(network(), [batch()], loss_fn=loss_fn, learning_rate=0.1, normalised=[["0.weight"]])
    assert found.evaluations == 1 + 4 + 2


def test_unknown_directions_and_blocks_are_refused():
    with pytest.raises(ValueError, match="A direction is 'descent' or 'ascent', not 'up'"):
        loss_smoothness(network(), [batch()], loss_fn=loss_fn, learning_rate=1.0, direction="up")
    with pytest.raises(UnknownNameError, match=r"The block \['0.wait'\] names '0.wait', which is no trainable"):
        loss_smoothness(network(), [batch()], loss_fn=loss_fn, learning_rate=1.0, normalised=[["0.wait"]])
