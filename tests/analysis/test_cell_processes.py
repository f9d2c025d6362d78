"""Cells that train in two real processes."""

import json
import os

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from tiny import TinyData, TinyNet, tiny_problem
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bn_lightning.analysis.cell_processes import processes_of
from bn_lightning.analysis.runner import CellsFailedWarning, execute
from bn_lightning.analysis.study import Arm, Budget, Study
from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecalibration

TWO = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}


class Net(TinyNet):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]), sync_dist=True)


class Data(TinyData):
    """Batches of a size in each process."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def _loader(self, *, shuffle):
        return DataLoader(super()._loader(shuffle=False).dataset, batch_size=self.size)


class Seen(pl.Callback):
    """Records the samples of the first batch, by which process."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.rows:
            self.rows = [(0, "", "first", batch[0].sum().item()), (0, "", "world", trainer.world_size)]

    def table(self):
        return pd.DataFrame(self.rows, columns=["step", "layer", "quantity", "value"])


def study(data, *arms, options=TWO, module=Net):
    problem = tiny_problem(
        module=module, data=data, trainer_options=options, budget=Budget(max_steps=8, eval_every=4, seeds=1)
    )
    arms = arms or (Arm(name="plain"),)
    return Study(name="ddp", question="?", arms=arms, reference=arms[0].name, problem=problem)


def losses(run, quantity="val_loss"):
    rows = run.results[run.results["quantity"] == quantity]
    return rows.groupby("arm")["value"].apply(list).to_dict()


def test_two_processes_give_what_one_gives_on_their_batches_together(tmp_path):
    # Each of two processes reads half of the samples at every step, in whatever order: one process reads all.
    both = execute(study(lambda: Data(size=16)), out=tmp_path / "two", progress=False)
    whole = study(lambda: Data(size=32), options={"accelerator": "cpu"})
    alone = execute(whole, out=tmp_path / "one", progress=False)
    assert not both.failures
    torch.testing.assert_close(torch.tensor(losses(both)["plain"]), torch.tensor(losses(alone)["plain"]))


def with_example(**options):
    made = Net(**options)
    made.example_input_array = torch.zeros(2, 3)
    return made


def test_seeds_order_the_data_arms_share_the_order_and_norms_are_inserted_in_worker_processes_too(tmp_path):
    arms = (
        Arm(name="none", callbacks=lambda: [Seen()]),
        Arm(name="before", callbacks=lambda: [Seen(), BatchNormInsertion(), BatchNormRecalibration()]),
    )
    run = execute(
        study(lambda: Data(size=4), *arms, module=with_example), seeds=2, jobs=2, out=tmp_path, progress=False
    )
    assert not run.failures
    first = losses(run, "first")
    assert first["none"] == first["before"]
    assert first["none"][0] != first["none"][1]
    assert losses(run, "world")["none"] == [2.0, 2.0]
    assert losses(run)["before"] != losses(run)["none"]
    assert len(list((tmp_path / "none" / "seed_0").glob("events*"))) == 1


class Broken(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            raise OSError("the disk of process 1 is on fire")


class Gone(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        os._exit(3)


def test_an_error_in_one_process_is_the_cells(tmp_path):
    arms = (Arm(name="a", callbacks=lambda: [Broken()]), Arm(name="b", callbacks=lambda: [Gone()]))
    with pytest.warns(CellsFailedWarning, match="2 of 2 cells failed"):
        run = execute(study(lambda: Data(size=4), *arms), out=tmp_path, progress=False)
    broken, gone = (json.loads((tmp_path / arm / "seed_0" / "cell.json").read_text()) for arm in "ab")
    assert broken["error"] == (
        "RuntimeError: In process 1 of the 2 of this cell: OSError: the disk of process 1 is on fire"
    )
    assert "on_train_batch_start" in broken["traceback"]
    assert "The 2 processes of this cell ended without a result" in gone["error"]
    assert len(run.failures) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": -1}, "devices=-1. Say how many"),
        ({"devices": "all"}, "devices='all'. Say how many"),
        ({"devices": []}, r"devices=\[\]. Say how many"),
        ({"devices": 2, "num_nodes": 2}, "A cell trains on one machine"),
        ({"devices": 2, "strategy": "ddp_spawn"}, "strategy 'ddp_spawn' of trainer_options starts processes itself"),
        ({"devices": 2, "strategy": pl.strategies.DDPStrategy(start_method="fork")}, "starts processes itself"),
    ],
)
def test_options_that_leave_open_how_a_cell_trains_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        processes_of(options)


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), ("1", 1), ("auto", 1), (2, 2), ("2", 2), ([0, 3], 2), ([1], 1)]
)
def test_a_process_for_each_device(devices, number):
    assert processes_of({"devices": devices}) == number
    assert processes_of({"devices": devices, "strategy": pl.strategies.DDPStrategy()}) == number
