import pytest
import torch
from torch import nn

from bn_lightning.analysis.problems.digits_model import DigitsMLP


def layers(**options):
    return [part for part in DigitsMLP(**options).net if isinstance(part, nn.Linear)]


def test_depth_and_width_are_those_of_the_hidden_layers():
    shapes = [tuple(layer.weight.shape) for layer in layers(depth=5, width=7)]
    assert shapes == [(7, 64), *[(7, 7)] * 4, (10, 7)]
    assert [tuple(layer.weight.shape) for layer in layers()] == [(100, 64), (100, 100), (100, 100), (10, 100)]


@pytest.mark.parametrize(("activation", "gain"), [("sigmoid", 1.0), ("relu", 2**0.5), ("tanh", 5 / 3)])
def test_weights_can_follow_from_the_layers(activation, gain):
    torch.manual_seed(0)
    made = layers(activation=activation, weight_std=None, width=400)
    for layer in made:
        wanted = (1.0 if layer is made[-1] else gain) / layer.in_features**0.5
        # Five standard errors of a standard deviation.
        error = 5 * wanted / (2 * layer.weight.numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(wanted, abs=error)
        assert not layer.bias.any()


@pytest.mark.parametrize("option", [{"depth": 0}, {"width": 0}])
def test_no_network_without_layers(option):
    with pytest.raises(ValueError, match="make no network; give positive numbers"):
        DigitsMLP(**option)
