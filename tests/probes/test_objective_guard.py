"""Whatever happens inside, a model comes back as it was: parameters, buffers, flags, hooks, random numbers."""

import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bn_lightning.probes.covariate_shift import gradient_covariate_shift
from bn_lightning.probes.loss_smoothness import loss_smoothness
from bn_lightning.probes.objective import Objective
from bn_lightning.probes.objective_guard import RandomStates, guarded_model


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()


def batch():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def state_of(model):
    parts = (*model.named_parameters(), *model.named_buffers())
    return (
        [(name, id(part), part.data_ptr(), part.detach().clone(), part.requires_grad) for name, part in parts],
        [id(part.grad) for part in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].copy(),  # noqa: NPY002 - the global one is meant
    )


def assert_same(found, expected):
    for here, there in zip(found[0], expected[0], strict=True):
        assert here[:3] + here[4:] == there[:3] + there[4:]
        assert torch.equal(here[3], there[3])
    assert found[1:3] == expected[1:3]
    assert torch.equal(found[3], expected[3])
    assert found[4] == expected[4]
    assert np.array_equal(found[5], expected[5])


class Wrecker:
    """A loss that draws, replaces buffers and modes, sets gradients, and fails in its n-th run."""

    def __init__(self, error, fails_at):
        self.error, self.left = error, fails_at

    def __call__(self, model, batch):
        random.random()
        np.random.rand()  # noqa: NPY002 - see above
        model[1].running_mean = torch.zeros(6, dtype=torch.float64)
        model[1].running_var.mul_(3)
        model[4].eval()
        model[4].bias.grad = torch.ones(3, dtype=torch.float64)
        self.left -= 1
        loss = loss_fn(model, batch)
        if self.left < 0:
            raise self.error
        return loss


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")])
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_measure_that_is_broken_off_leaves_nothing(error, fails_at):
    model = network()
    before = {name: part.detach() + 0.1 for name, part in model.named_parameters()}
    model[0].weight.grad = torch.ones_like(model[0].weight)
    expected = state_of(model)
    with pytest.raises(type(error)):
        gradient_covariate_shift(model, [batch()], before, loss_fn=Wrecker(error, fails_at), layers=["1", "4"])
    assert_same(state_of(model), expected)
    with pytest.raises(type(error)):
        loss_smoothness(
            model, [batch()], loss_fn=Wrecker(error, fails_at), step_sizes=(0.1, 0.2), normalised=[["0.weight"]]
        )
    assert_same(state_of(model), expected)


def test_an_iteration_cleaned_up_late_does_not_reach_back():
    model = network()
    objective = Objective(model, [batch()], loss_fn=loss_fn)
    point = {name: part.detach() + 1 for name, part in model.named_parameters()}
    with objective.guarded():
        iteration = objective.losses(point, ["0.weight"])
        next(iteration)
    model[0].weight.data = torch.zeros(6, 4, dtype=torch.float64)
    iteration.close()
    assert not model[0].weight.any()
    assert all(part.requires_grad for part in model.parameters())


def test_hooks_on_gradients_do_not_run_and_stay():
    model, calls = network(), []
    model[0].weight.register_hook(lambda gradient: calls.append(1) or gradient * 100)
    plain = Objective(network(), [batch()], loss_fn=loss_fn)
    torch.manual_seed(5)
    found = Objective(model, [batch()], loss_fn=loss_fn)()[1]
    torch.manual_seed(5)
    assert_close(found["0.weight"], plain()[1]["0.weight"])
    assert calls == []
    loss_fn(model, batch()).backward()
    assert calls == [1]


def test_a_frozen_copy_that_is_assigned_to_comes_back():
    model = network()
    model.add_module("teacher", nn.Linear(4, 3).double().requires_grad_(False))
    expected = state_of(model)

    def moves_teacher(model, batch):
        model.teacher.weight.data = model.teacher.weight.data * 0.9 + 1
        return F.cross_entropy(model[:5](batch[0]), batch[1])

    Objective(model, [batch()], loss_fn=moves_teacher)()
    assert_same(state_of(model), expected)


def test_a_buffer_written_to_past_the_module_comes_back():
    model = network()
    held = [model[1].running_mean]
    expected = state_of(model)

    def keeps_a_mean(model, batch):
        held[0].mul_(0.9).add_(1)
        return F.cross_entropy(model(batch[0]), batch[1])

    Objective(model, [batch()], loss_fn=keeps_a_mean)()
    assert_same(state_of(model), expected)
    assert held[0] is model[1].running_mean


def test_autocast_does_not_answer_with_the_weights_of_another_point():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = batch()
    objective = Objective(model, [(x.float(), y)], loss_fn=loss_fn)
    point = {name: part.detach() + 0.5 for name, part in model.named_parameters()}
    with torch.autocast("cpu", dtype=torch.bfloat16), objective.guarded():
        found = [objective(at)[0].item() for at in (None, point, None)]
        alone = objective.loss(point)
    assert found[0] == found[2]
    assert found[1] == alone
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for name, part in model.named_parameters():
            part.copy_(point[name])
        assert loss_fn(model, (x.float(), y)).item() == pytest.approx(found[1])
    assert found[1] != found[0]


def checkpointed(model, batch, reentrant=False):
    hidden = checkpoint(model[:3], batch[0].clone().requires_grad_(), use_reentrant=reentrant)
    return F.cross_entropy(model[3:](hidden), batch[1])


def test_checkpointed_activations_are_computed_again_at_the_point():
    model = network()
    point = {name: part.detach() + 0.3 for name, part in model.named_parameters()}
    found = Objective(model, [batch()], loss_fn=checkpointed)(point)[1]
    assert_close(found, Objective(model, [batch()], loss_fn=loss_fn)(point)[1])


def test_a_reentrant_checkpoint_is_no_dead_layer():
    objective = Objective(network(), [batch()], loss_fn=lambda m, b: checkpointed(m, b, reentrant=True))
    with pytest.raises(ValueError, match="Sequential uses gradient checkpointing with use_reentrant=True"):
        objective()


def test_sparse_gradients_count_as_dense_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 3, sparse=True), nn.Flatten(), nn.Linear(6, 1)).double()
    x = torch.tensor([[1, 2], [2, 5], [1, 1]])
    options = {"loss_fn": lambda m, x: m(x).square().mean(), "step_sizes": (0.1, 0.2), "normalised": False}
    found = loss_smoothness(model, [x], **options)
    model[0].sparse = False
    assert found == loss_smoothness(model, [x], **options)


def test_parametrized_and_tied_weights_stand_at_the_point():
    model = nn.Sequential(weight_norm(nn.Linear(4, 4, bias=False)), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model.add_module("tied", nn.Linear(4, 4, bias=False).double())
    model.tied.weight = model[2].weight
    kept = [model[2].weight]
    point = {name: part.detach() * 1.5 for name, part in model.named_parameters()}
    objective = Objective(model, [batch()[0]], loss_fn=lambda m, x: m(x).square().mean() + kept[0].square().sum())
    found = objective.loss(point)
    norm = point["0.parametrizations.weight.original0"]
    direction = point["0.parametrizations.weight.original1"]
    first = norm * direction / direction.norm(dim=1, keepdim=True)
    w = point["2.weight"]
    expected = (torch.tanh(batch()[0] @ first.T) @ w.T @ w.T).square().mean() + w.square().sum()
    assert found == pytest.approx(expected.item())


def test_a_data_parallel_wrapper_is_left_out():
    model = network()
    torch.manual_seed(3)
    expected = Objective(model, [batch()], loss_fn=loss_fn)()
    torch.manual_seed(3)
    wrapped = Objective(nn.DataParallel(model), [batch()], loss_fn=loss_fn)
    assert wrapped.model is model
    assert_close(wrapped(), expected)


def test_norms_without_momentum_keep_their_running_statistics():
    model = network()
    model[1] = nn.BatchNorm1d(6, momentum=None).double()
    expected = state_of(model)
    loss_smoothness(model, [batch()], loss_fn=loss_fn, step_sizes=(0.1,))
    assert_same(state_of(model), expected)


def test_no_memory_of_the_model_is_held_on_to():
    model = network()
    with guarded_model(model, dict(model.named_parameters())):
        pass
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_numpy_goes_back_also_from_a_normal_number_it_had_kept():
    np.random.seed(0)  # noqa: NPY002 - the global one is meant
    np.random.standard_normal()  # noqa: NPY002 - leaves a second one for later
    states = RandomStates()
    drawn = [np.random.standard_normal(), np.random.standard_normal()]  # noqa: NPY002
    states.rewind()
    assert [np.random.standard_normal(), np.random.standard_normal()] == drawn  # noqa: NPY002
    states.rewind()
    first = np.random.standard_normal()  # noqa: NPY002
    states.rewind()
    assert np.random.standard_normal() == first  # noqa: NPY002


def test_every_evaluation_meets_the_same_numbers_of_all_generators():
    drawn = []

    def draws(model, batch):
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
        return loss_fn(model, batch)

    objective = Objective(network(), [batch()], loss_fn=draws)
    with objective.guarded():
        for _ in range(3):
            objective()
    assert len(set(drawn)) == 1


def test_what_does_not_fit_is_refused():
    model = network()
    objective = Objective(model, [batch()], loss_fn=loss_fn)
    with pytest.raises(ValueError, match=r"'4.bias' has shape \(3,\) and cannot be moved to a value of shape \(2,\)"):
        objective({"4.bias": torch.zeros(2)})
    with (
        pytest.raises(RuntimeError, match=r"stands at a point inside guarded\(\) only"),
        objective.standing_at({}),
    ):
        pass
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0.weight', '0.bias' of Sequential get their shapes in the first forward"):
        Objective(lazy, [batch()], loss_fn=loss_fn)
