import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bn_lightning.probes.curvature_hessian import Hessian
from bn_lightning.probes.gradient_norms import gradient_norms
from bn_lightning.probes.objective import Objective
from bn_lightning.probes.parameter_gradients import dense_gradient, parameter_gradients


def test_gradients_are_those_of_backward_and_can_be_differentiated_again():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 3)
    parameters = list(model.parameters())
    found = parameter_gradients(model(x).square().mean(), parameters, model, create_graph=True)
    model(x).square().mean().backward()
    assert_close([part.detach() for part in found], [part.grad for part in parameters])
    assert all(part.requires_grad for part in found)


def test_where_a_loss_may_be_independent_gradients_are_0_and_else_it_is_refused():
    leaf = torch.ones(2, requires_grad=True)
    for loss in (torch.ones(()), torch.ones((), requires_grad=True).square()):
        assert parameter_gradients(loss, [leaf], nn.Identity(), independent=True)[0].tolist() == [0.0, 0.0]
        with pytest.raises(ValueError, match="The loss of Identity depends on none of the parameters"):
            parameter_gradients(loss, [leaf], nn.Identity())


def test_a_sparse_gradient_becomes_a_strided_one():
    model = nn.Embedding(4, 2, sparse=True)
    (found,) = parameter_gradients(model(torch.tensor([1, 1])).sum(), [model.weight], model)
    assert found.tolist() == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    assert dense_gradient(found, model.weight) is found


def reentrant(model, x):
    return model[1](checkpoint(model[0], x.clone().requires_grad_(), use_reentrant=True)).square().mean()


def curvature(model, batches, loss_fn):
    objective = Objective(model, batches, loss_fn=loss_fn)
    with objective.guarded():
        return Hessian(objective)(np.ones(sum(part.numel() for part in model.parameters())))


@pytest.mark.parametrize("measure", [gradient_norms, curvature])
def test_a_layer_behind_a_reentrant_checkpoint_is_not_measured_as_one_without_a_gradient(measure):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="Sequential uses gradient checkpointing with use_reentrant=True"):
        measure(model, [torch.randn(5, 3)], loss_fn=reentrant)
