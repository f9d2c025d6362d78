import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.curvature_directions import direction_between, random_direction


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)).double()


def test_filters_are_as_long_as_the_models_and_vectors_are_as_asked():
    model = network()
    direction = random_direction(model, seed=3)
    for name in ("0.weight", "4.weight"):
        expected = dict(model.named_parameters())[name].detach().flatten(1).norm(dim=1)
        assert_close(direction[name].flatten(1).norm(dim=1), expected)
    assert all(not direction[name].any() for name in ("0.bias", "1.weight", "1.bias", "4.bias"))
    scaled = random_direction(model, seed=3, vectors="scale")
    assert_close(scaled["1.weight"].norm(), model[1].weight.detach().norm())
    assert scaled["1.bias"].tolist() == [0] * 4  # no longer than the bias
    assert_close(scaled["0.weight"], direction["0.weight"])
    with pytest.raises(UnknownNameError, match="left alone by 'zero' or moved by 'scale', not 'norm'"):
        random_direction(model, vectors="norm")


@pytest.mark.parametrize("make", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_filters_of_transposed_convolutions_are_their_outputs(make):
    model = make(4, 6, 3, groups=2).double()
    direction = random_direction(model)["weight"]
    # Two inputs in a row belong to a group of three outputs.
    for group in (slice(2), slice(2, 4)):
        for output in range(3):
            assert_close(direction[group, output].norm(), model.weight.detach()[group, output].norm())


def test_norms_of_two_axes_and_filters_of_one_element_are_vectors():
    model = nn.Sequential(nn.LayerNorm([4, 5]), nn.RMSNorm([4, 5]), nn.Flatten(), weight_norm(nn.Linear(20, 4)))
    names = ("0.weight", "1.weight", "3.parametrizations.weight.original0")
    zero, scaled = random_direction(model), random_direction(model, vectors="scale")
    for name in names:
        value = model.get_parameter(name)
        assert not zero[name].any()
        assert_close(scaled[name].norm(), value.detach().norm())
        assert not torch.allclose(scaled[name].abs(), value.detach().abs())


def test_solutions_of_different_networks_have_no_way_between():
    start, end = (dict(network(seed).named_parameters()) for seed in (0, 1))
    assert_close(direction_between(start, end)["4.bias"], (end["4.bias"] - start["4.bias"]).detach())
    with pytest.raises(UnknownNameError, match=r"these differ in 4\.weight\. Build both with the same norms"):
        direction_between(start, {**end, "4.weight": torch.zeros(1)})
    with pytest.raises(UnknownNameError, match=r"these differ in 1\.weight\. Build both"):
        direction_between(start, {name: value for name, value in end.items() if name != "1.weight"})


def test_a_frozen_network_has_no_direction():
    with pytest.raises(ValueError, match="Sequential has no parameter that requires a gradient"):
        random_direction(network().requires_grad_(False))
