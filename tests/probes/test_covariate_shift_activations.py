"""Distances of pre-activations against the layers run by hand and scipy."""

import copy

import pytest
import scipy.stats
import torch
from torch import nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.functional.sampling import spread_rows
from bn_lightning.probes.covariate_shift_activations import ActivationProbe


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(6, 5), nn.ReLU(inplace=True),
        nn.Linear(5, 3),
    )  # fmt: skip


def inputs(n=40, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def disturbed(model):
    with torch.no_grad():
        for part in model.parameters():
            part += 0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(5))


def test_distances_are_scipys_of_what_each_nonlinearity_received():
    model = network()
    probe = ActivationProbe(model, [inputs()], args=(inputs(2),))
    x = [inputs()]
    before = [model[:2](*x).detach(), model[:5](*x).detach()]
    start = probe.activations()
    disturbed(model)
    after = [model[:2](*x).detach(), model[:5](*x).detach()]
    shift = probe.shift(start, probe.activations())
    assert list(shift.layers) == ["0", "4"]
    for layer, a, b in zip(shift.layers, before, after, strict=True):
        expected = [scipy.stats.wasserstein_distance(a[:, c].numpy(), b[:, c].numpy()) for c in range(a.shape[1])]
        # The layers run in float32.
        torch.testing.assert_close(
            shift.layers[layer].wasserstein, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
        )
    numbers = shift.numbers("drift")["4"]
    assert numbers["drift_wasserstein"] == pytest.approx(shift.layers["4"].wasserstein.mean().item())
    assert numbers["drift_dead_units"] == 0


def test_the_same_model_has_moved_by_nothing_whatever_the_dropout():
    model = network(dropout=0.5)
    probe = ActivationProbe(model, [inputs(), inputs(20, seed=2)], args=(inputs(2),))
    start = probe.activations()
    torch.rand(7)
    for shift in probe.shift(start, probe.activations()).layers.values():
        assert shift.wasserstein.tolist() == [0] * len(shift.wasserstein)


def test_nothing_of_the_model_moves():
    model = network(dropout=0.5)
    probe = ActivationProbe(model, [inputs()], args=(inputs(2),))
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    probe.activations()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_images_give_every_position_and_large_ones_the_same_sample_of_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    x = torch.randn(5, 2, 8, 8)
    whole = ActivationProbe(model, [x], args=(x,)).activations()["0"]
    torch.testing.assert_close(whole, model[0](x).movedim(1, -1).flatten(0, -2).detach())
    probe = ActivationProbe(model, [x], args=(x,), max_values=60)
    assert torch.equal(probe.activations()["0"], whole[spread_rows(180, 60)])
    assert torch.equal(probe.activations()["0"], probe.activations()["0"])


def test_a_sample_of_large_images_sees_a_shift_that_padding_hides_in_one_column():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), nn.ReLU())
    batches = [torch.randn(64, 1, 32, 32) for _ in range(4)]
    probe = ActivationProbe(model, batches, args=(batches[0],))
    start = probe.activations()
    whole = torch.cat([model[0](x).detach().flatten() for x in batches])
    with torch.no_grad():
        # The weight of the left neighbour, which the first column lacks.
        model[0].weight[0, 0, 0, 0] += 5
    after = torch.cat([model[0](x).detach().flatten() for x in batches])
    (shift,) = probe.shift(start, probe.activations()).layers.values()
    # 2,048 of 262,144 values.
    assert float(shift.wasserstein) == pytest.approx(
        scipy.stats.wasserstein_distance(whole.numpy(), after.numpy()), rel=0.05
    )


def test_layers_are_chosen_and_forward_is_the_users():
    model = network()
    probe = ActivationProbe(
        model, [{"x": inputs()}], args=(inputs(2),), include="4", forward=lambda model, batch: model(batch["x"])
    )
    assert list(probe.activations()) == ["4"]
    with pytest.raises(UnknownNameError, match="No monitored layer matches 'conv'"):
        ActivationProbe(model, [inputs()], args=(inputs(2),), include="conv")


def test_unusable_arguments_are_refused():
    with pytest.raises(TypeError, match="A probe set is a list of batches, got a Tensor; wrap a single batch"):
        ActivationProbe(network(), inputs(), args=(inputs(2),))
    with pytest.raises(ValueError, match="needs two samples or more, got 1 samples"):
        ActivationProbe(network(), [inputs(1)], args=(inputs(2),))
    with pytest.raises(ValueError, match="and max_values=1"):
        ActivationProbe(network(), [inputs()], args=(inputs(2),), max_values=1)
    with pytest.raises(ValueError, match=r"Give an example call, as in args=\(x,\)"):
        ActivationProbe(network(), [inputs()])
    with pytest.raises(NoSiteError, match="None of the 2 nonlinearities of Sequential has a pre-activation"):
        ActivationProbe(network(), [inputs()], args=(inputs(2),), exclude="*")
