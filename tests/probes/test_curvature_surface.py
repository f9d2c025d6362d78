"""Surfaces against loading each point into a copy; directions by their definition."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.curvature_directions import direction_between, random_direction
from bn_lightning.probes.curvature_surface import Surface, loss_surface


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)).double()


def batch(n=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 8, generator=generator, dtype=torch.float64)
    return x, x[:, 0, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def at(model, point):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in twin.named_parameters():
            part.add_(point[name])
    loss = loss_fn(twin, batch())
    loss.backward()
    return loss.item(), torch.cat([part.grad.flatten() for part in twin.parameters()]).norm().item()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_point_is_that_of_a_copy(mode):
    model = network()
    model[1].running_var *= 0.5
    first, second = random_direction(model), random_direction(model, vectors="scale", seed=1)
    coordinates = ((-1, 0, 0.5), (0, 2))
    found = loss_surface(
        model, [batch()], [first, second], coordinates, loss_fn=loss_fn, gradients=True, norm_mode=mode
    )
    assert found.losses.shape == found.gradient_norms.shape == (3, 2)
    model[1].train(mode == "train")
    for i, a in enumerate(coordinates[0]):
        for j, b in enumerate(coordinates[1]):
            loss, norm = at(model, {name: a * first[name] + b * second[name] for name in first})
            assert found.losses[i, j].item() == pytest.approx(loss)
            assert found.gradient_norms[i, j].item() == pytest.approx(norm)
    plain = loss_surface(model, [batch()], [first, second], coordinates, loss_fn=loss_fn)
    assert_close(plain.losses, found.losses)
    assert plain.gradient_norms is None


def test_a_line_between_two_solutions_has_them_at_its_ends():
    one, other = network(0), network(1)
    start, end = (dict(model.named_parameters()) for model in (one, other))
    line = loss_surface(one, [batch()], [direction_between(start, end)], [(0, 0.5, 1)], loss_fn=loss_fn)
    assert line.losses[0].item() == pytest.approx(loss_fn(copy.deepcopy(one), batch()).item())
    assert line.losses[2].item() == pytest.approx(loss_fn(copy.deepcopy(other), batch()).item())
    from_other = loss_surface(one, [batch()], [direction_between(end, start)], [(1,)], loss_fn=loss_fn, origin=end)
    assert from_other.losses[0].item() == pytest.approx(line.losses[0].item())


def test_nothing_of_the_model_moves():
    model = network()
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    loss_surface(model, [batch()], [random_direction(model)], [(-1, 1)], loss_fn=loss_fn, gradients=True)
    loss_surface(model, [batch()], [random_direction(model)], [(-1, 1)], loss_fn=loss_fn, norm_mode="eval")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training


def test_plateaus_need_gradients():
    norms = torch.tensor([[10.0, 0.5], [2.0, math.nan]], dtype=torch.float64)
    surface = Surface(((0.0, 1.0), (0.0, 1.0)), norms, norms, 2)
    assert surface.plateau_share(0.1) == 0.25
    assert surface.plateau_share(0.1, reference=100.0) == 0.5
    with pytest.raises(ValueError, match="compute the surface with gradients=True"):
        Surface(((0.0,),), norms, None, 2).plateau_share(0.1)


def test_points_beyond_the_finite_are_nan():
    model = network()
    line = loss_surface(
        model,
        [batch()],
        [{"4.weight": torch.full((3, 24), math.inf).double()}],
        [(1,)],
        loss_fn=loss_fn,
        gradients=True,
    )
    assert math.isnan(line.losses.item())
    assert math.isnan(line.gradient_norms.item())


def test_directions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got 1 directions and coordinates of lengths \[0\]"):
        loss_surface(network(), [batch()], [{}], [()], loss_fn=loss_fn)
    with pytest.raises(UnknownNameError, match="Sequential has no trainable parameter 'fc'; make directions"):
        loss_surface(network(), [batch()], [{"fc": torch.ones(1)}], [(0,)], loss_fn=loss_fn)
