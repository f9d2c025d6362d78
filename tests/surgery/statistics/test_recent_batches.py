"""The last batches of training, against what torch's own norm computed in each."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bn_lightning.errors import NonFiniteError, NoNormError, StatisticsWarning
from bn_lightning.surgery.statistics.recent_batches import RecentBatchStatistics


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3), nn.BatchNorm1d(3)
    )


def batches(number=10):
    return torch.randn(number, 8, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1


def train(model, recent, data, lr=0.5):
    """Train for real; the statistics of every batch, as a norm of momentum 1 keeps them."""
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=lr), []
    for batch in data:
        random_state = torch.get_rng_state()
        twin = copy.deepcopy(model)
        for norm in (twin[1], twin[5]):
            norm.momentum = 1.0
            norm._forward_pre_hooks.clear()
        twin(batch)
        seen.append({name: twin[name] for name in (1, 5)})
        torch.set_rng_state(random_state)
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if recent:
            recent.end_batch()
    return seen


@pytest.mark.parametrize("kept", [1, 4, 100])
def test_equals_the_mean_over_what_torch_computed_in_training(kept):
    model = network()
    with RecentBatchStatistics(model, num_batches=kept) as recent:
        seen = train(model, recent, batches())[-kept:]
    report = recent.write()
    assert (report.estimator, report.batches) == ("last_batches", min(kept, 10))
    assert [layer.count for layer in report.layers] == [8 * min(kept, 10)] * 2
    for name in (1, 5):
        assert_close(model[name].running_mean, torch.stack([norms[name].running_mean for norms in seen]).mean(0))
        assert_close(model[name].running_var, torch.stack([norms[name].running_var for norms in seen]).mean(0))


def test_training_is_as_without_and_the_hooks_are_gone():
    plain, watched = network(), network()
    torch.manual_seed(5)
    train(plain, None, batches())
    torch.manual_seed(5)
    with RecentBatchStatistics(watched) as recent:
        train(watched, recent, batches())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert not any(module._forward_pre_hooks for module in watched.modules())


def test_looks_at_the_model_in_between_do_not_count():
    model = network()
    with RecentBatchStatistics(model) as recent:
        model(batches()[0])
        recent.end_batch()
        with torch.no_grad():
            model(batches()[1] + 100)
        model.eval()(batches()[1] + 100)
        recent.end_batch()
        model.train()
        model(batches()[1] + 100)
        recent.forget_batch()
        recent.end_batch()
    report = recent.write()
    assert (report.batches, report.layers[0].count) == (1, 8)
    assert_close(model[1].running_mean, model[0](batches()[0]).mean(0))


def test_gradient_checkpointing_weighs_every_batch_alike():
    plain, checkpointed = network()[:2], network()[:2]
    with RecentBatchStatistics(plain) as one, RecentBatchStatistics(checkpointed) as other:
        for batch in batches():
            plain(batch).square().mean().backward()
            one.end_batch()
            checkpoint(checkpointed, batch, use_reentrant=False).square().mean().backward()
            other.end_batch()
    one.write()
    other.write()
    assert_close(checkpointed[1].running_mean, plain[1].running_mean)
    assert_close(checkpointed[1].running_var, plain[1].running_var)


def test_ranks_merge():
    model, vectors = network(), []
    for share in (batches()[:2], batches()[2:]):
        with RecentBatchStatistics(model) as recent:
            for batch in share:
                model(batch)
                recent.end_batch()
        recent.write(gather=lambda vector: [vectors.append(vector) or vector])
    recent.write(gather=lambda _: vectors)
    assert_close(model[1].running_mean, model[0](batches().flatten(0, 1)).mean(0))


def test_frozen_norms_keep_theirs_and_unseen_ones_are_named():
    model = network()
    model.spare = nn.BatchNorm1d(2)
    model[1].eval()
    with RecentBatchStatistics(model) as recent:
        nn.Sequential(*list(model.children())[:6])(batches()[0])
        recent.end_batch()
    with pytest.warns(StatisticsWarning) as warned:
        report = recent.write()
    text = " ".join(str(warning.message) for warning in warned)
    assert "'1' were skipped: frozen" in text
    assert "'spare' were skipped: saw no batch of training" in text
    assert [norm.layer for norm in report.skipped] == ["1", "spare"]
    assert torch.equal(model[1].running_mean, torch.zeros(6))


def test_a_batch_of_one_value_a_channel_is_not_read():
    norm = nn.SyncBatchNorm(3).train()
    with RecentBatchStatistics(norm) as recent:
        recent._read(norm, (torch.randn(1, 3),), {})
        recent.end_batch()
    with pytest.raises(NoNormError, match=r"No batch of training was kept of the norms ''.*end_batch\(\)"):
        recent.write()


def test_bad_input():
    with pytest.raises(ValueError, match="num_batches=0 keeps no batch"):
        RecentBatchStatistics(network(), num_batches=0)
    with pytest.raises(NoNormError, match="has no batch norm"):
        RecentBatchStatistics(nn.Linear(1, 1)).write()
    model = network()
    with RecentBatchStatistics(model) as recent:
        model(batches()[0] * math.nan)
        recent.end_batch()
    before = model[1].running_var.clone()
    with pytest.raises(NonFiniteError, match="'1', '5' are NaN"):
        recent.write()
    assert_close(model[1].running_var, before, equal_nan=True)
