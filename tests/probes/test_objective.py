"""The loss at any point, against loading the point into a copy; and that nothing of the model moves."""

import copy
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.objective import Objective, batch_samples


def network(dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()


def batch(n=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def moved(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in model.named_parameters()
    }


def loaded(model, point):
    """The same model with the point in it, by the plain means."""
    twin = copy.deepcopy(model)
    twin.load_state_dict({**twin.state_dict(), **point})
    return twin


def by_hand(model, point, batch, state):
    twin = loaded(model, point)
    torch.set_rng_state(state)
    loss = loss_fn(twin, batch)
    loss.backward()
    return loss.item(), {name: value.grad for name, value in twin.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradient_are_those_of_a_copy_with_the_point_loaded(training):
    model = network().train(training)
    state, point = torch.get_rng_state(), moved(network())
    loss, gradient = Objective(model, [batch()], loss_fn=loss_fn)(point)
    expected_loss, expected = by_hand(model, point, batch(), state)
    assert loss.item() == pytest.approx(expected_loss)
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(gradient[name], value)


def test_nothing_of_the_model_moves():
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].eval()
    before = copy.deepcopy(model.state_dict())
    identities = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    modes, gradients = [part.training for part in model.modules()], [part.grad for part in model.parameters()]
    versions = [part._version for part in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    objective = Objective(model, [batch(), batch(seed=3)], loss_fn=loss_fn)
    with objective.guarded():
        objective(moved(model))
        objective()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())} == identities
    assert [part.training for part in model.modules()] == modes
    assert [part.grad for part in model.parameters()] == gradients
    assert [part._version for part in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002 - the global one is meant
    assert random.getstate() == states[2]


def test_dropout_draws_the_same_masks_at_every_point():
    objective = Objective(network(0.5), [batch()], loss_fn=loss_fn)
    assert objective()[0] == objective()[0]
    other = objective()[0]
    torch.manual_seed(99)
    assert objective()[0] != other
    assert objective.evaluations == 4


def test_batches_weigh_what_they_hold():
    model = network(0.0)
    parts = [batch(6), batch(14, seed=5)]
    loss, gradient = Objective(model, parts, loss_fn=loss_fn)()
    singles = [by_hand(model, {}, part, torch.get_rng_state()) for part in parts]
    assert loss.item() == pytest.approx(0.3 * singles[0][0] + 0.7 * singles[1][0])
    assert_close(gradient["4.weight"], 0.3 * singles[0][1]["4.weight"] + 0.7 * singles[1][1]["4.weight"])


def test_an_unused_parameter_has_a_gradient_of_0_and_a_frozen_one_none():
    model = network()
    model.add_module("spare", nn.Identity())
    model.spare.unused = nn.Parameter(torch.ones(2))
    model[0].weight.requires_grad_(False)
    objective = Objective(model, [batch()], loss_fn=lambda m, b: F.cross_entropy(nn.Sequential(*m[:7])(b[0]), b[1]))
    _, gradient = objective()
    assert gradient["spare.unused"].tolist() == [0, 0]
    assert "0.weight" not in gradient
    assert not model[0].weight.requires_grad


def test_a_shared_parameter_counts_once_and_moves_everywhere():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    model[2].weight = model[0].weight
    x = torch.randn(5, 3, dtype=torch.float64)
    objective = Objective(model, [x], loss_fn=lambda m, x: m(x).square().mean())
    assert list(objective.parameters) == ["0.weight"]
    w = torch.randn(3, 3, dtype=torch.float64)
    expected = (torch.tanh(x @ w.T) @ w.T).square().mean()
    assert_close(objective({"0.weight": w})[0], expected)


def test_a_recurrent_layer_gets_the_point_and_keeps_its_own():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True).double()
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    own = model(x)[0].square().mean()
    point = moved(model)
    twin = loaded(model, point)
    objective = Objective(model, [x], loss_fn=lambda m, x: m(x)[0].square().mean())
    assert_close(objective(point)[0], twin(x)[0].square().mean().detach())
    assert_close(model(x)[0].square().mean(), own)


class Lit(pl.LightningModule):
    def __init__(self, form="tensor"):
        super().__init__()
        self.net, self.form = network(0.0), form

    def training_step(self, batch, batch_idx):
        loss = loss_fn(self.net, batch)
        forms = {
            "tensor": loss, "dict": {"loss": loss, "n": 1}, "none": None, "no loss": {"n": 1},
            "vector": loss.expand(2), "detached": loss.detach(),
        }  # fmt: skip
        return forms[self.form]


class OneArgument(Lit):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class Iterates(Lit):
    def training_step(self, dataloader_iter):
        return None


@pytest.mark.parametrize("module", [Lit(), Lit("dict"), OneArgument()])
def test_training_step_is_the_loss_of_a_lightning_module(module):
    loss, gradient = Objective(module, [batch()])()
    assert_close(loss, loss_fn(copy.deepcopy(module.net), batch()).detach())
    assert "net.0.weight" in gradient


def test_patterns_choose_parameters():
    model = network()
    objective = Objective(model, [batch()], loss_fn=loss_fn, parameters=["0.*", "4.weight"])
    assert list(objective()[1]) == ["0.weight", "0.bias", "4.weight"]
    assert list(Objective(model, [batch()], loss_fn=loss_fn, parameters="6.*").parameters) == ["6.weight", "6.bias"]
    with pytest.raises(UnknownNameError, match=r"No trainable parameter matches '9\.\*'; there are, for instance: 0"):
        Objective(model, [batch()], loss_fn=loss_fn, parameters="9.*")


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ("none", TypeError, "came back as a NoneType. Pass loss_fn="),
        ("no loss", TypeError, r"a mapping without a tensor 'loss' \(keys \['n'\]\)"),
        ("vector", ValueError, r"has shape \(2,\); it must be one number"),
        ("detached", ValueError, "depends on none of the parameters it is differentiated by"),
    ],
)
def test_a_step_without_a_usable_loss_is_refused(form, error, message):
    with pytest.raises(error, match=message):
        Objective(Lit(form), [batch()])()


def test_unusable_modules_and_batches_are_refused():
    with pytest.raises(TypeError, match=r"Sequential has no training_step to take the loss from\. Pass loss_fn="):
        Objective(network(), [batch()])
    manual = Lit()
    manual.automatic_optimization = False
    with pytest.raises(
        ValueError, match=r"optimizes manually, so running it would step the optimizers\. Pass loss_fn="
    ):
        Objective(manual, [batch()])
    with pytest.raises(ValueError, match="takes a dataloader_iter instead of a batch"):
        Objective(Iterates(), [batch()])
    with pytest.raises(TypeError, match=r"A probe set is a list of batches, got a tuple; wrap a single batch"):
        Objective(network(), batch(), loss_fn=loss_fn)
    with pytest.raises(ValueError, match="needs two samples or more, got 1"):
        Objective(network(), [batch(1)], loss_fn=loss_fn)
    with pytest.raises(ValueError, match="Sequential has no parameter that requires a gradient"):
        Objective(network().requires_grad_(False), [batch()], loss_fn=loss_fn)


def test_samples_are_the_longest_leading_axis():
    assert batch_samples([torch.zeros(3, 9), torch.zeros(5)]) == 5
    assert batch_samples("no tensor") == 1
    assert Objective(network(), [batch(6), batch(3)], loss_fn=loss_fn).samples == 9


def test_a_loss_that_uses_up_its_batch_meets_it_whole_at_every_point():
    def using_up(model, batch):
        x = batch.pop("x").mul_(2)
        return F.cross_entropy(model(x), batch.pop("y"))

    x, y = batch()
    for write in (using_up, lambda model, batch: F.cross_entropy(model(batch["x"] * 2), batch["y"])):
        model = network()
        objective = Objective(model, [{"x": x, "y": y}, {"x": x + 1, "y": y}], loss_fn=write)
        found = [objective.loss(), float(objective(moved(model))[0]), objective.loss()]
        expected = found if write is using_up else expected
    assert found == expected
    assert found[0] == found[2]
    assert_close(x, batch()[0])


def test_a_gradient_by_a_layer_that_is_not_reached_is_0_and_by_all_such_layers_refused():
    model = network()
    model.append(nn.Linear(3, 3).double())
    objective = Objective(model, [batch()], loss_fn=lambda model, batch: F.cross_entropy(model[:7](batch[0]), batch[1]))
    _, gradient = objective(wrt=["7.weight"])
    assert_close(gradient["7.weight"], torch.zeros(3, 3, dtype=torch.float64))
    alone = Objective(
        model,
        [batch()],
        loss_fn=lambda model, batch: F.cross_entropy(model[:7](batch[0]), batch[1]),
        parameters="7.*",
    )
    with pytest.raises(ValueError, match="depends on none of the parameters it is differentiated by"):
        alone()


def test_one_sample_is_enough_where_training_took_it():
    assert Objective(network().eval(), [batch(1)], loss_fn=loss_fn, min_samples=1).samples == 1


def test_a_batch_that_is_written_to_now_and_then_is_met_whole_by_each_evaluation():
    calls = []

    def writes_to_the_second(model, batch):
        calls.append(len(calls))
        x = batch[0].mul_(3) if len(calls) % 2 == 0 else batch[0]
        return F.cross_entropy(model(x), batch[1])

    batches = [batch(), batch(seed=5)]
    objective = Objective(network(), batches, loss_fn=writes_to_the_second)
    first = objective.loss()
    assert objective.loss() == first
    assert torch.equal(batches[1][0], batch(seed=5)[0])


class FloatIsland(nn.Module):
    """Computes in float32 under autocast, as norms and losses of the user's often do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.second(self.first(x).tanh())


def test_gradients_under_autocast_are_those_that_training_takes_behind_it():
    torch.manual_seed(0)
    model = FloatIsland()
    x, y = (part.float() if part.is_floating_point() else part for part in batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(model, (x, y))
        _, gradient = Objective(model, [(x, y)], loss_fn=loss_fn)()
    loss.backward()
    for name, part in model.named_parameters():
        assert torch.equal(part.grad, gradient[name]), name
