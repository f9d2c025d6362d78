"""Definition 2.1 against literally loading the two sets of parameters, in float64."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.covariate_shift import gradient_covariate_shift


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Dropout(0.4), nn.Linear(6, 5), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(5, 3)).double()


def batch(n=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def stepped(model, lr=0.5, **options):
    """The parameters before a step of gradient descent; the model ends up behind it."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=lr)
    loss_fn(model, batch(**options)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return before


def by_hand(model, parameters, layer, batch, state):
    """The gradient of one layer of a copy with these parameters loaded."""
    twin = copy.deepcopy(model)
    twin.load_state_dict({**twin.state_dict(), **parameters})
    torch.set_rng_state(state)
    loss_fn(twin, batch).backward()
    return torch.cat([part.grad.flatten() for part in twin[layer].parameters()])


def test_each_layer_is_what_loading_the_two_parameter_sets_gives():
    model = network()
    before = stepped(model)
    after = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = torch.get_rng_state()
    found = gradient_covariate_shift(
        model, [batch()], before, loss_fn=loss_fn, reference=[batch(seed=9)], layers=["1", "4", "6"]
    )
    assert [entry.layer for entry in found] == ["1", "4", "6"]
    for entry in found:
        layer = int(entry.layer)
        mixed = {name: (after if int(name[0]) < layer else before)[name] for name in before}
        g, h = (by_hand(model, point, layer, batch(), state) for point in (before, mixed))
        step = math.sqrt(sum((after[n] - before[n]).square().sum().item() for n in before if int(n[0]) < layer))
        distance = (g - h).norm().item()
        assert entry.shift.distance == pytest.approx(distance)
        assert entry.shift.relative == pytest.approx(distance / g.norm().item())
        assert entry.shift.per_unit_step == pytest.approx(distance / g.norm().item() / step)
        assert entry.shift.cosine == pytest.approx(F.cosine_similarity(g, h, dim=0).item())
        other = by_hand(model, before, layer, batch(seed=9), state)
        assert entry.noise.relative == pytest.approx(((g - other).norm() / g.norm()).item())
        assert entry.noise.cosine == pytest.approx(F.cosine_similarity(g, other, dim=0).item())


def test_norms_move_with_the_layers_before_but_are_measured_only_if_asked():
    model = network()
    before = stepped(model)
    found = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn)
    assert [entry.layer for entry in found] == ["4", "6"]
    # The norm's step counts: without it the shift of the layer behind would be another one.
    frozen = {**{name: value.detach() for name, value in model.named_parameters()}}
    frozen["1.weight"], frozen["1.bias"] = before["1.weight"], before["1.bias"]
    without = gradient_covariate_shift(model, [batch()], before, frozen, loss_fn=loss_fn)
    assert without[0].shift.distance != pytest.approx(found[0].shift.distance, rel=1e-3)


def test_a_parametrized_first_layer_has_no_shift():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 3))).double()
    (entry,) = gradient_covariate_shift(model, [batch()], stepped(model), loss_fn=loss_fn)
    assert entry.layer == "2"
    assert entry.shift.relative > 0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_step_of_length_0_is_no_shift_and_cosine_1(seed):
    model = network(seed)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for entry in gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn):
        assert (entry.shift.distance, entry.shift.relative, entry.shift.cosine) == (0, 0, 1)
        assert math.isnan(entry.shift.per_unit_step)


def test_a_tiny_step_is_measured_not_taken_for_none():
    model = network()
    before = stepped(model, lr=1e-6)
    (entry, _) = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn)
    larger = network()
    (other, _) = gradient_covariate_shift(larger, [batch()], stepped(larger, lr=1e-3), loss_fn=loss_fn)
    assert 0 < entry.shift.relative < 1e-4
    # To first order the shift per unit step does not know the learning rate.
    assert entry.shift.per_unit_step == pytest.approx(other.shift.per_unit_step, rel=0.05)


def test_nothing_of_the_model_moves():
    model = network()
    before = stepped(model)
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn, reference=[batch(seed=2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_a_dead_layer_is_nan_and_says_so():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    before = stepped(model)
    dead, alive = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn)
    assert (dead.layer, dead.shift.state) == ("1", "dead")
    assert math.isnan(dead.shift.relative)
    assert dead.numbers()["gradient_shift_dead"] == 1
    # The last layer's bias has a gradient still.
    assert (alive.shift.state, alive.numbers()["gradient_shift_dead"]) == ("", 0)


def test_a_diverged_step_is_nan():
    model = network()
    before = stepped(model)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    (entry, _) = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn)
    assert entry.shift.state == "non-finite"
    assert math.isnan(entry.numbers()["gradient_shift_cosine"])


def test_frozen_layers_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    before = stepped(model)
    found = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn)
    assert [entry.layer for entry in found] == ["4", "6"]
    model = network()
    model[4].weight.requires_grad_(False)
    found = gradient_covariate_shift(model, [batch()], stepped(model), loss_fn=loss_fn)
    assert [entry.layer for entry in found] == ["6"]


class Backwards(nn.Module):
    """Registered in the reverse order of its forward, with a parameter that no module call shows."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(5, 3), nn.Linear(4, 5)
        self.read = nn.Linear(5, 5)

    def forward(self, x):
        return self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), self.read.weight, self.read.bias)))


def test_layers_come_in_the_order_of_the_forward():
    torch.manual_seed(0)
    model = Backwards().double()
    found = gradient_covariate_shift(model, [batch()], stepped(model), loss_fn=loss_fn)
    assert [entry.layer for entry in found] == ["read", "last"]


def test_only_the_parameters_chosen_move_and_count():
    model = network()
    before = stepped(model)
    found = gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn, parameters=["4.*", "6.*"])
    assert [entry.layer for entry in found] == ["6"]


def test_cost_is_one_pass_a_layer(monkeypatch):
    passes = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(len(a[1])) or grad(*a, **k))
    model = network()
    gradient_covariate_shift(model, [batch()], stepped(model), loss_fn=loss_fn)
    assert passes == [8, 2, 2]  # all parameters for G, then those of the one layer


@pytest.mark.parametrize("layers", [None, "4"])
def test_names_that_fit_nothing_are_refused(layers):
    model = network()
    before = stepped(model)
    with pytest.raises(
        UnknownNameError, match=r"Sequential has no parameter '9\.weight'; name them as named_parameters"
    ):
        gradient_covariate_shift(model, [batch()], {"9.weight": torch.ones(1)}, loss_fn=loss_fn, layers=layers)
    with pytest.raises(UnknownNameError, match=r"No layer with trainable parameters matches 'x\*'; there are: 0, 1, 4"):
        gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn, layers="x*")
    with pytest.raises(ValueError, match="There is no layer to measure in Sequential: the first of the layers"):
        gradient_covariate_shift(model, [batch()], before, loss_fn=loss_fn, layers="0")
