"""Norms that can be made the identity, those that cannot, and a write that is whole or not at all."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bn_lightning import insert_batch_norm
from bn_lightning.errors import NonFiniteError
from bn_lightning.surgery.statistics import identity_norms
from bn_lightning.surgery.statistics.identity_norms import (
    inserted_batch_norms,
    is_identity,
    keeps_function,
    make_identity,
)


def network(norm="batch"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 1))
    insert_batch_norm(model, (torch.randn(4, 2, 8, 8),), norm=norm)
    return model.eval()


def statistics(model):
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(norm.num_features, generator=generator), torch.rand(norm.num_features, generator=generator))
        for name, norm in inserted_batch_norms(model).items()
    }


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Logging(nn.BatchNorm2d):
    """A forward of its own that does nothing else."""

    def forward(self, input):
        self.seen = tuple(input.shape)
        return super().forward(input)


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(2 * input)


@pytest.mark.parametrize("norm", ["batch", Logging, nn.SyncBatchNorm])
def test_whatever_the_statistics_each_norm_hands_its_input_on(norm):
    model = network(norm)
    given = statistics(model)
    make_identity(model, given)
    for name, made in inserted_batch_norms(model).items():
        x = 3 * torch.randn(5, made.num_features, 4, 4)
        assert_close(made(x), x)
        assert torch.equal(made.running_mean, given[name][0])
        assert torch.equal(made.running_var, given[name][1])
        assert int(made.num_batches_tracked) == 0


def test_an_own_forward_that_does_more_is_refused_and_nothing_stays_written():
    model = network(Doubling)
    before = state(model)
    with pytest.raises(
        ValueError, match=r"norm at '1' \(in 0.bn_lightning_norm: Doubling\) does not hand its input on"
    ):
        make_identity(model, statistics(model))
    assert_close(state(model), before, rtol=0, atol=0)


def test_ctrl_c_while_writing_brings_everything_back(monkeypatch):
    model = network()
    before, original = state(model), identity_norms._copy

    def interrupted(pairs):
        monkeypatch.setattr(identity_norms, "_copy", original)
        original(pairs[:3])
        raise KeyboardInterrupt

    given = statistics(model)
    monkeypatch.setattr(identity_norms, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_identity(model, given)
    assert_close(state(model), before, rtol=0, atol=0)


def test_an_overflow_in_the_buffers_type_is_non_finite():
    model = network().half()
    before = state(model)
    given = statistics(model)
    given["2.bn_lightning_norm.0"][1].fill_(1e6)
    with pytest.raises(NonFiniteError, match=r"of '2.bn_lightning_norm.0' are NaN or infinite"):
        make_identity(model, given)
    assert_close(state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (lambda channels: nn.GroupNorm(1, channels), r"0\.bn_lightning_norm\.0 \(GroupNorm\) is no batch norm"),
        (lambda channels: nn.BatchNorm2d(channels, affine=False), r"no scale and shift.*\(affine=False\)"),
        (lambda channels: nn.BatchNorm2d(channels, track_running_stats=False), "keeps no running statistics"),
        (lambda channels: nn.LazyBatchNorm2d(), r"\(LazyBatchNorm2d\) has not been initialised"),
    ],
)
def test_norms_that_cannot_are_named_with_the_reason(norm, reason):
    with pytest.raises(
        ValueError, match=f"Not every inserted norm can start as the identity: .*{reason}.*norm='batch'"
    ):
        inserted_batch_norms(network(norm))


def test_what_was_learned_is_known_from_what_was_made():
    model = network()
    norm = model[0].bn_lightning_norm[0]
    norm.running_mean.normal_()
    assert keeps_function(norm)
    assert not is_identity(norm)
    make_identity(model, statistics(model))
    assert keeps_function(norm)
    assert is_identity(norm)
    norm.running_mean.add_(1)
    assert not keeps_function(norm)
    assert not is_identity(norm)


def test_norms_that_cannot_be_the_identity_are_not():
    for norm in (nn.GroupNorm(1, 4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)):
        assert not is_identity(norm)
