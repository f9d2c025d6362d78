import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tiny import Failing, TinyNet, modified, tiny_problem, tiny_study

from bn_lightning.analysis.runner import CellsFailedWarning, execute
from bn_lightning.analysis.study import Arm
from bn_lightning.analysis.tuning import tune_learning_rate

STUDY = tiny_study(Arm(name="a"), Arm(name="b"))
ON = tiny_problem(module=lambda **o: TinyNet(metric="tune_loss", **o), monitor="tune_loss")


def tune(tmp_path, study=STUDY, **options):
    given = {"on": ON, "multiples": (0.01, 2.0, 1e7), "out": tmp_path, "progress": False}
    return tune_learning_rate(study, **{**given, **options})


def test_every_arm_gets_the_best_rate_of_the_grid(tmp_path):
    tuned = tune(tmp_path)
    assert [arm.factors for arm in tuned.study.arms] == [{"rate_multiple": 2.0}] * 2
    assert [arm.name for arm in tuned.study.arms] == ["a", "b"]
    assert tuned.study.problem is STUDY.problem
    grid = tuned.grid.set_index(["arm", "multiple"])
    assert grid["chosen"].tolist() == [False, True, False] * 2
    assert grid.loc[("a", 2.0), "tune_loss"] < grid.loc[("a", 0.01), "tune_loss"]
    assert grid.loc[("a", 1e7), "diverged"] + (grid.loc[("a", 1e7), "tune_loss"] > 1e3) > 0
    assert grid["seeds"].tolist() == [2] * 6


def test_the_chosen_rate_is_that_of_the_training(tmp_path):
    tuned = tune(tmp_path / "rates", multiples=(2.0,), out=tmp_path / "rates").study
    by_hand = tiny_study(Arm(name="a", options={"lr": 0.2}), Arm(name="b", options={"lr": 0.2}))
    losses = []
    for name, study in (("tuned", tuned), ("by_hand", by_hand)):
        results = execute(study, out=tmp_path / name, progress=False).results
        losses.append(results.loc[results["quantity"] == "val_loss", "value"].tolist())
    assert losses[0] == losses[1] != []


def test_what_the_arms_are_compared_on_is_not_read_where_nothing_else_is_named(tmp_path):
    tuned = tune(tmp_path, on=None, multiples=(0.01, 2.0))
    assert tuned.study.problem is STUDY.problem
    assert tuned.grid["chosen"].tolist() == [False, True] * 2
    assert {read_cell(tmp_path, "a_x2")["configuration"]["problem"]} == {"tiny_held_out"}


def read_cell(folder, arm):
    return json.loads((folder / arm / "seed_1000" / "cell.json").read_text())


def test_a_grid_that_is_finished_is_trained_again_only_if_told_to(tmp_path):
    def tuned(**options):
        tune(tmp_path, tiny_study(Arm(name="a")), multiples=(1.0,), seeds=(1000,), **options)
        return modified(tmp_path)

    first = tuned()
    assert tuned() == first
    assert not tuned(redo=True).items() & first.items()


def test_tuning_seeds_are_its_own(tmp_path):
    tune(tmp_path)
    assert sorted(path.name for path in (tmp_path / "a_x2").iterdir()) == ["seed_1000", "seed_1001"]


class BlowUpAt(pl.Callback):
    """A loss that overflows at one learning rate."""

    def __init__(self, rate):
        self.rate = rate

    def on_train_start(self, trainer, pl_module):
        pl_module.blow_up = trainer.optimizers[0].param_groups[0]["lr"] == self.rate


def test_a_rate_at_which_a_seed_diverged_is_not_chosen(tmp_path):
    study = tiny_study(*(Arm(name=name, callbacks=lambda: [BlowUpAt(0.2)]) for name in "ab"))
    tuned = tune(tmp_path, study, multiples=(0.01, 2.0))
    assert tuned.grid["diverged"].tolist() == [0, 2, 0, 2]
    assert tuned.study.arms[0].factors == {"rate_multiple": 0.01}


class Undefined(TinyNet):
    """A metric that is not finite at one learning rate, though the weights are."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("tune_score", float("nan") if self.trainer.optimizers[0].param_groups[0]["lr"] == 0.2 else 1.0)


UNDEFINED = {"on": tiny_problem(module=Undefined, monitor="tune_score")}


def test_a_rate_at_which_the_metric_is_not_finite_is_not_chosen_and_did_not_diverge(tmp_path):
    tuned = tune(tmp_path, tiny_study(Arm(name="a")), multiples=(0.01, 2.0), **UNDEFINED)
    assert tuned.grid["diverged"].tolist() == [0, 0]
    assert tuned.grid["not_finite"].tolist() == [0, 2]
    assert tuned.grid["seeds"].tolist() == [2, 2]
    assert tuned.study.arms[0].factors == {"rate_multiple": 0.01}


class FailsOnce(pl.Callback):
    """Fails at one learning rate with one seed."""

    def on_train_start(self, trainer, pl_module):
        if trainer.optimizers[0].param_groups[0]["lr"] == 0.2 and torch.initial_seed() == 1001:
            raise OSError("the disk is on fire")


def test_a_rate_at_which_a_seed_failed_is_not_chosen_and_did_not_diverge(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [FailsOnce()]))
    with pytest.warns(CellsFailedWarning, match="1 of 4 cells failed"):
        tuned = tune(tmp_path, study, multiples=(0.01, 2.0))
    assert tuned.grid[["diverged", "failed", "seeds"]].to_numpy().tolist() == [[0, 0, 2], [0, 1, 1]]
    assert tuned.study.arms[0].factors == {"rate_multiple": 0.01}


def test_where_every_metric_is_finite_or_of_a_diverged_run_the_grid_counts_no_others(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [BlowUpAt(0.2)]))
    grid = tune(tmp_path, study, multiples=(0.01, 2.0)).grid
    assert grid.columns.tolist() == ["arm", "multiple", "tune_loss", "diverged", "seeds", "chosen"]


def test_a_shorter_budget_evaluates_once_at_its_end(tmp_path):
    tuned = tune(tmp_path, max_steps=4, multiples=(1.0,))
    assert tuned.grid["seeds"].tolist() == [2, 2]


@pytest.mark.parametrize("multiples", [(), (0.1, 0.1), (0.0, 1.0), (float("nan"),)])
def test_a_grid_that_is_none_is_refused(tmp_path, multiples):
    with pytest.raises(ValueError, match="holds different positive multiples"):
        tune(tmp_path, multiples=multiples)


@pytest.mark.parametrize("of", [np.array, torch.tensor, iter])
def test_a_grid_may_be_an_array(tmp_path, of):
    tuned = tune(tmp_path, tiny_study(Arm(name="a")), multiples=of([0.5, 2.0]), seeds=1)
    assert tuned.grid["multiple"].tolist() == [0.5, 2.0]
    assert tuned.study.arms[0].factors == {"rate_multiple": 2.0}


def test_tuning_on_what_the_arms_are_compared_by_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Tune on a validation split"):
        tune(tmp_path, on=tiny_problem())


def test_an_arm_that_no_rate_trains_is_named(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [Failing()]))
    with (
        pytest.warns(CellsFailedWarning, match="2 of 2 cells failed"),
        pytest.raises(RuntimeError, match=r"every run of arm 'a' end .* of 2 runs 2 failed\.$"),
    ):
        tune(tmp_path, study, multiples=(1.0,))


def test_an_arm_that_diverges_at_every_rate_is_told_from_one_whose_metric_is_never_finite(tmp_path):
    diverging = tiny_study(Arm(name="a", callbacks=lambda: [BlowUpAt(0.2)]))
    with pytest.raises(RuntimeError, match=r"arm 'a' end .* of 2 runs 2 diverged\. Give smaller rates\.$"):
        tune(tmp_path / "diverging", diverging, multiples=(2.0,), out=tmp_path / "diverging")
    undefined = (
        r"of 2 runs 2 kept finite weights and ended with a 'tune_score' that is not finite\. See why 'tune_score'"
    )
    with pytest.raises(RuntimeError, match=undefined):
        tune(tmp_path / "none", tiny_study(Arm(name="a")), multiples=(2.0,), out=tmp_path / "none", **UNDEFINED)
