import json

import pytest
import pytorch_lightning as pl
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


def test_a_shorter_budget_evaluates_once_at_its_end(tmp_path):
    tuned = tune(tmp_path, max_steps=4, multiples=(1.0,))
    assert tuned.grid["seeds"].tolist() == [2, 2]


@pytest.mark.parametrize("multiples", [(), (0.1, 0.1), (0.0, 1.0), (float("nan"),)])
def test_a_grid_that_is_none_is_refused(tmp_path, multiples):
    with pytest.raises(ValueError, match="holds different positive multiples"):
        tune(tmp_path, multiples=multiples)


def test_tuning_on_what_the_arms_are_compared_by_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Tune on a validation split"):
        tune(tmp_path, on=tiny_problem())


def test_an_arm_that_no_rate_trains_is_named(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [Failing()]))
    with (
        pytest.warns(CellsFailedWarning, match="2 of 2 cells failed"),
        pytest.raises(RuntimeError, match="No learning rate of the grid trained arm 'a'"),
    ):
        tune(tmp_path, study, multiples=(1.0,))
