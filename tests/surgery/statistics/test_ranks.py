"""Recalibration over two real gloo processes: all the data of all ranks, and no rank left waiting."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from oracles import norm_inputs, paper_statistics, pooled_statistics
from torch import nn
from torch.testing import assert_close

import bn_lightning
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm

SCRIPT = """
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm

    rank, out = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    gathers = []
    original = dist.all_gather
    dist.all_gather = lambda *args, **kwargs: (gathers.append(1), original(*args, **kwargs))[1]

    def outcome(estimator, batches):
        model = torch.load(f"{out}/model.pt", weights_only=False)
        gathers.clear()
        try:
            report = recalibrate_batch_norm(model, batches, estimator=estimator)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "state": model.state_dict()}
        counts = [layer.count for layer in report.layers]
        return {"state": model.state_dict(), "batches": report.batches, "counts": counts, "gathers": len(gathers)}

    mine = torch.load(f"{out}/batches.pt")[rank]
    broken = [*mine, "no tensor"] if rank == 1 else mine
    idle = mine if rank == 0 else []
    torch.save(
        {
            "pooled": outcome("pooled", mine),
            "paper": outcome("paper", mine),
            "broken": outcome("pooled", broken),
            "idle": outcome("pooled", idle),
            "again": outcome("pooled", mine),
        },
        f"{out}/rank{rank}.pt",
    )
    dist.destroy_process_group()
"""


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    generator = torch.Generator().manual_seed(0)
    # Uneven: sizes, numbers of batches, and means that differ between the ranks.
    batches = [
        [torch.randn(size, 3, generator=generator) + 100 * rank for size in sizes]
        for rank, sizes in enumerate([(8, 8, 3), (5,)])
    ]
    torch.save(batches, out / "batches.pt")
    torch.save(model(), out / "model.pt")
    (out / "run.py").write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(Path(bn_lightning.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, out / "run.py", str(rank), out], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return batches, [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]


def assert_statistics(state, batches, oracle):
    for name, inputs in norm_inputs(model(), batches).items():
        mean, variance = oracle(inputs)
        assert_close(state[f"{name}.running_mean"], mean.float())
        assert_close(state[f"{name}.running_var"], variance.float())


@pytest.mark.parametrize(("estimator", "oracle"), [("pooled", pooled_statistics), ("paper", paper_statistics)])
def test_all_ranks_hold_the_statistics_of_all_data(ranks, estimator, oracle):
    batches, outcomes = ranks
    for outcome in outcomes:
        assert_statistics(outcome[estimator]["state"], batches[0] + batches[1], oracle)
        assert outcome[estimator]["batches"] == 4
        assert outcome[estimator]["counts"] == [24, 24]
        assert outcome[estimator]["gathers"] == 1
    for name, value in outcomes[0][estimator]["state"].items():
        assert torch.equal(outcomes[1][estimator]["state"][name], value)


@pytest.mark.parametrize("estimator", ["pooled", "paper"])
def test_two_processes_with_uneven_data_equal_one_process_on_all_of_it(ranks, estimator):
    batches, outcomes = ranks
    alone = model()
    recalibrate_batch_norm(alone, batches[0] + batches[1], estimator=estimator)
    for name, buffer in alone.named_buffers():
        if not name.endswith("num_batches_tracked"):
            # Sums are float64, so only the last rounding can differ.
            assert_close(outcomes[0][estimator]["state"][name], buffer, rtol=1e-6, atol=0)


def test_a_rank_that_fails_tells_the_others(ranks):
    _, (first, second) = ranks
    assert first["broken"]["error"].startswith("RuntimeError: Recalibration failed on rank 1")
    assert second["broken"]["error"].startswith("TypeError: Cannot tell how to run")
    before = model().state_dict()
    for outcome in (first, second):
        for name, value in outcome["broken"]["state"].items():
            assert torch.equal(value, before[name])
        assert_close(outcome["again"]["state"]["1.running_mean"], outcome["pooled"]["state"]["1.running_mean"])


def test_a_rank_without_data_takes_part(ranks):
    batches, outcomes = ranks
    for outcome in outcomes:
        assert_statistics(outcome["idle"]["state"], batches[0], pooled_statistics)
