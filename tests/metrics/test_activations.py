import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bn_lightning.functional.summarise import summarise
from bn_lightning.metrics.activations import ActivationStatistics

ROWS = (37, 11)


def whole(x):
    channel = torch.arange(x.shape[1]).repeat(x.shape[0])
    return summarise(x.reshape(-1), channel, channels=x.shape[1], elements=x.numel())


def layers(seed, rows):
    """Two layers whose mean is large against their spread, as float32 activations."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) * 1e-2 + 1e4 for width in (3, 5)]


def test_updates_merge_to_the_whole():
    metric, batches = ActivationStatistics([3, 5]), [layers(seed, rows) for seed, rows in enumerate(ROWS)]
    for batch in batches:
        metric.update([whole(x) for x in batch])
    for layer, summary in enumerate(metric.summaries()):
        truth = torch.cat([batch[layer] for batch in batches]).double().numpy()
        torch.testing.assert_close(summary.moments.mean, torch.from_numpy(truth.mean(0)))
        torch.testing.assert_close(summary.moments.variance(), torch.from_numpy(truth.var(0)))
        assert summary.percentiles((15, 50, 85)) == pytest.approx(np.percentile(truth, (15, 50, 85)).tolist())
    metric.reset()
    metric.update([whole(x) for x in batches[0]])
    assert [summary.count for summary in metric.summaries()] == [37 * 3, 37 * 5]


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float"])
def test_casting_a_module_that_holds_it_leaves_the_state_float64(cast):
    holder = nn.Module()
    holder.metric, holder.fc = ActivationStatistics([3, 5]), nn.Linear(2, 2)
    x = layers(0, 20)
    holder.metric.update([whole(part) for part in x])
    before = holder.metric.state.clone()
    getattr(holder, cast)()
    assert holder.metric.state.dtype == torch.float64
    assert torch.equal(holder.metric.state, before)


def test_nonfinite_only_batches_are_remembered():
    metric = ActivationStatistics([2])
    nan = torch.full((3,), torch.nan)
    bad = torch.tensor([2, 2])
    metric.update([summarise(nan, torch.tensor([0, 1, 0]), channels=2, elements=4, nonfinite=bad)])
    assert metric.summaries()[0].nonfinite == 4
    metric.update([whole(torch.ones(2, 2))])
    (summary,) = metric.summaries()
    assert (summary.nonfinite, summary.count) == (4, 4)
    assert summary.channel_nonfinite.tolist() == [2, 2]
    assert summary.mean == 1


def test_more_samples_than_fit_are_thinned():
    x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    metric = ActivationStatistics([1], max_samples=500)
    metric.update([whole(x)])
    (summary,) = metric.summaries()
    assert len(summary.values) == 500
    assert summary.mean == pytest.approx(x.double().mean().item())
    assert summary.percentiles((50,))[0] == pytest.approx(x.median().item(), abs=0.01)


@pytest.mark.parametrize("options", [{"channels": []}, {"channels": [0]}, {"channels": [1], "max_samples": 0}])
def test_a_metric_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="at least one layer"):
        ActivationStatistics(**options)


def test_summaries_of_other_layers_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 5\] channels, got \[5, 3\]"):
        ActivationStatistics([3, 5]).update([whole(x) for x in reversed(layers(0, 4))])


def _rank(rank, folder, silent):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    gathers = []
    original = dist.all_gather
    dist.all_gather = lambda *args, **kwargs: gathers.append(args[1].numel()) or original(*args, **kwargs)
    metric = ActivationStatistics([3, 5])
    if rank == 0 or not silent:
        metric.update([whole(x) for x in layers(rank, ROWS[rank])])
    summaries = metric.summaries() if not silent or rank == 0 else _summaries_without_data(metric)
    if rank == 1:
        torch.save(
            [(s.moments.mean, s.moments.variance(), s.moments.m4, s.percentiles((15, 50, 85))) for s in summaries],
            f"{folder}/merged.pt",
        )
        # The first gather of each state is that of its size.
        torch.save(len(gathers), f"{folder}/gathers.pt")
    dist.destroy_process_group()


def _summaries_without_data(metric):
    import warnings

    with warnings.catch_warnings():
        # torchmetrics warns of a compute before any update; a rank without data is what is tested.
        warnings.simplefilter("ignore", UserWarning)
        return metric.summaries()


@pytest.mark.parametrize("silent", [False, True], ids=["uneven", "one rank without data"])
def test_two_ranks_merge_to_the_pooled_truth(tmp_path, silent):
    mp.spawn(_rank, args=(str(tmp_path), silent), nprocs=2)
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    for layer, (mean, variance, m4, percentiles) in enumerate(merged):
        ranks = (0,) if silent else (0, 1)
        truth = torch.cat([layers(rank, ROWS[rank])[layer] for rank in ranks]).double().numpy()
        torch.testing.assert_close(mean, torch.from_numpy(truth.mean(0)))
        torch.testing.assert_close(variance, torch.from_numpy(truth.var(0)))
        torch.testing.assert_close(m4, torch.from_numpy(((truth - truth.mean(0)) ** 4).sum(0)))
        assert percentiles == pytest.approx(np.percentile(truth, (15, 50, 85)).tolist())
    assert torch.load(tmp_path / "gathers.pt", weights_only=True) == 2
