"""Which parameters are taken and refused."""

import pytest
import torch
from torch import nn

from bn_lightning.probes.curvature import hessian_eigenvalues
from bn_lightning.probes.curvature_directions import direction_between, random_direction
from bn_lightning.probes.curvature_surface import loss_surface
from bn_lightning.probes.trainable import trainable_parameters


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mixing = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))

    def forward(self, x):
        return torch.fft.ifft(torch.fft.fft(self.linear(x)) @ self.mixing).real


def loss_fn(model, x):
    return model(x).square().mean()


def test_complex_parameters_are_refused_unless_frozen_or_left_out():
    torch.manual_seed(0)
    model, x = Spectral(), torch.randn(8, 4)
    refused = r"'mixing' of Spectral are complex, .* leave them out with parameters=, or store torch\.view"
    with pytest.raises(ValueError, match=refused):
        hessian_eigenvalues(model, [x], loss_fn=loss_fn)
    with pytest.raises(ValueError, match=refused):
        random_direction(model)
    chosen = hessian_eigenvalues(model, [x], loss_fn=loss_fn, parameters="linear.*")
    model.mixing.requires_grad_(False)
    assert hessian_eigenvalues(model, [x], loss_fn=loss_fn).eigenvalues == chosen.eigenvalues
    assert list(trainable_parameters(model)) == ["linear.weight", "linear.bias"]


def test_losses_on_the_way_between_complex_parameters_are_measured():
    torch.manual_seed(0)
    model, x = Spectral(), torch.randn(8, 4)
    start = {"mixing": model.mixing.detach().clone()}
    way = direction_between(start, {"mixing": 1j * start["mixing"]})
    line = loss_surface(model, [x], [way], [(0, 1)], loss_fn=loss_fn)
    model.mixing.data *= 1j
    assert line.losses[1] == pytest.approx(loss_fn(model, x).item(), rel=1e-5)
    with pytest.raises(ValueError, match="'mixing' of Spectral are complex"):
        loss_surface(model, [x], [way], [(0, 1)], loss_fn=loss_fn, gradients=True)
