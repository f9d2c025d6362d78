"""The noise against its published distribution; the norm under it against torch's own."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bn_lightning as bnl
from bn_lightning.errors import BatchSizeError, NormOptionError
from bn_lightning.layers.activation_noise import ActivationNoise
from bn_lightning.layers.noisy_batch_norm import NoisyBatchNorm

KINDS = {(64, 3): nn.BatchNorm1d, (64, 3, 5): nn.BatchNorm1d, (64, 3, 4, 5): nn.BatchNorm2d}


def drawn(samples, channels, *behind):
    """Scale and shift of each sample and channel, read off from what becomes of 0 and 1."""
    x = torch.zeros(samples, channels, *behind, dtype=torch.float64)
    noise, state = ActivationNoise(), torch.get_rng_state()
    shift = noise(x)
    torch.set_rng_state(state)
    return noise(x + 1) - shift, shift


def test_shift_and_scale_have_the_papers_distributions():
    torch.manual_seed(0)
    scale, shift = drawn(400, 4000)
    centre, spread = shift.mean(0), (shift - shift.mean(0)).abs().max()
    # Of U(−.1, .1), 400 draws: their mean is within 5 · .2/√(12·400) ≈ .0144 of its own, and bounds are kept.
    assert centre.abs().max() <= 0.5 + 0.0144
    assert centre.min() < -0.49
    assert centre.max() > 0.49
    assert 0.19 < (shift.amax(0) - shift.amin(0)).min() < spread * 2 < 0.2 + 2 * 0.0144
    # The mean over 4,000 units of U(−.5, .5) has the standard error 1/√(12·4000) = .0046, of U(1, 1.25) .0012.
    assert shift.mean().abs() < 5 * 0.0046
    assert (scale.mean() - 1.125).abs() < 5 * 0.0012
    assert_close(shift.var(), torch.tensor(1 / 12 + 0.04 / 12).double(), rtol=0.03, atol=0)  # 5 standard errors
    within = scale - scale.mean(0, keepdim=True)
    # 1.6 million normal draws: a standard error of .1/√(2·1.6e6) ≈ 5.6e-5; the unit's own mean takes 1/400.
    assert (within.std() - 0.1 * (1 - 1 / 800)).abs() < 5 * 5.6e-5
    assert ((within / 0.1) ** 4).mean().item() == pytest.approx(3, abs=0.06)  # a normal's, not a uniform's 1.8


def test_a_channel_of_a_sample_shares_its_noise_over_positions_and_nothing_else_does():
    scale, shift = drawn(5, 4, 3, 2)
    for part in (scale, shift):
        assert_close(part, part[:, :, :1, :1].expand_as(part))
        assert len(part[:, :, 0, 0].flatten().unique()) == 20


def test_each_call_draws_another_distribution():
    means = torch.stack([drawn(200, 1)[1].mean() for _ in range(200)])
    assert 0.2 < means.std() < 0.38  # of U(−.5, .5): .289


@pytest.mark.parametrize("shape", KINDS)
def test_it_is_torchs_batch_norm_under_the_noise(shape):
    torch.manual_seed(1)
    own, torchs = NoisyBatchNorm(3, momentum=0.3).double(), KINDS[shape](3, momentum=0.3).double()
    with torch.no_grad():
        own.weight.copy_(torch.tensor([0.5, 1.5, 2.0]))
        own.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    torchs.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    state = torch.get_rng_state()
    found = own(x)
    torch.set_rng_state(state)
    assert_close(found, own.noise(torchs(x)))
    assert (found - torchs(x)).abs().max() > 0.05
    own.load_state_dict(torchs.state_dict(), strict=True)
    before = torch.get_rng_state()
    assert torch.equal(own.eval()(x), torchs.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_is_that_of_a_norm_with_fixed_scale_and_shift():
    norm, x = NoisyBatchNorm(2).double(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def same_noise(x):
        torch.manual_seed(3)
        return norm(x)

    assert torch.autograd.gradcheck(same_noise, (x,))


def test_no_noise_is_drawn_by_recalibration():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    twin, batches = copy.deepcopy(model), [torch.randn(50, 4) for _ in range(4)]
    bnl.insert_batch_norm(model, (batches[0],), norm=NoisyBatchNorm)
    bnl.insert_batch_norm(twin, (batches[0],))
    for one in (model, twin):
        bnl.recalibrate_batch_norm(one, batches)
    assert model.training
    with torch.no_grad():
        assert_close(model.eval()(batches[0]), twin.eval()(batches[0]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 6), (8, 5)), (nn.Linear(5, 6), (4, 7, 5)), (nn.Conv2d(5, 6, 3), (4, 5, 6, 6))],
)
def test_it_is_a_factory_for_insertion(layer, shape):
    # Behind the tanh another layer: at the end of a network it would be a head.
    model, x = nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)), torch.randn(shape)
    model(x)
    plan = bnl.insert_batch_norm(model, (x,), norm=partial(NoisyBatchNorm, momentum=0.01))
    assert [site.channels for site in plan.inserted] == [6]
    norm = model[0].bn_lightning_norm[0]
    assert isinstance(norm, NoisyBatchNorm)
    assert not model[0].bias.requires_grad
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_copies_pickles_and_descriptions_keep_the_noise():
    norm = NoisyBatchNorm(3, shift_range=(-1, 1), scale_std=0.0)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert repr(twin) == repr(norm)
        assert twin.noise.shift_range == (-1.0, 1.0)
    assert "shift_range=(-1.0, 1.0), scale_range=(1.0, 1.25), shift_width=0.1, scale_std=0.0" in repr(norm)


def test_it_compiles_without_a_graph_break():
    norm = NoisyBatchNorm(3)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 3)
    torch.manual_seed(0)
    expected = norm(x)
    torch.manual_seed(0)
    assert_close(compiled(x), expected)


def test_half_precision_keeps_its_type():
    assert ActivationNoise()(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift_range": (0.5, -0.5)}, r"shift_range is a lower and an upper bound, .* not \(0.5, -0.5\)"),
        ({"scale_range": (1.0,)}, r"scale_range is a lower and an upper bound, .* not \(1.0,\)"),
        ({"scale_range": (1.0, float("inf"))}, "scale_range is a lower and an upper bound"),
        ({"shift_width": -0.1}, "shift_width is a number of 0 or more, not -0.1"),
        ({"scale_std": float("nan")}, "scale_std is a number of 0 or more, not nan"),
    ],
)
def test_noise_that_cannot_be_is_refused(options, message):
    with pytest.raises(NormOptionError, match=message):
        NoisyBatchNorm(3, **options)


def test_a_tensor_without_channels_is_refused():
    with pytest.raises(BatchSizeError, match=r"takes \[N, C, ...\], got a tensor of shape \(3,\)"):
        NoisyBatchNorm(3)(torch.zeros(3))
