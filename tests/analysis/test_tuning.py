import pytest
from tiny import Failing, TinyNet, tiny_problem, tiny_study

from bn_lightning.analysis.runner import CellsFailedWarning
from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.analysis.tuning import tune_learning_rate

STUDY = tiny_study(Arm(name="a"), Arm(name="b"))
ON = tiny_problem(module=lambda lr, **o: TinyNet(lr=lr, metric="tune_loss", **o), monitor="tune_loss")


def tune(tmp_path, study=STUDY, **options):
    given = {"on": ON, "rates": (0.001, 0.2, 1e6), "out": tmp_path, "progress": False}
    return tune_learning_rate(study, **{**given, **options})


def test_every_arm_gets_the_best_rate_of_the_grid(tmp_path):
    tuned = tune(tmp_path)
    assert [arm.options for arm in tuned.study.arms] == [{"lr": 0.2}, {"lr": 0.2}]
    assert tuned.study.problem is STUDY.problem
    grid = tuned.grid.set_index(["arm", "lr"])
    assert grid["chosen"].tolist() == [False, True, False] * 2
    assert grid.loc[("a", 0.2), "tune_loss"] < grid.loc[("a", 0.001), "tune_loss"]
    assert grid.loc[("a", 1e6), "diverged"] + (grid.loc[("a", 1e6), "tune_loss"] > 1e3) > 0
    assert grid["seeds"].tolist() == [2] * 6


def test_tuning_seeds_are_its_own(tmp_path):
    tune(tmp_path)
    assert sorted(path.name for path in (tmp_path / "a_lr0.2").iterdir()) == ["seed_1000", "seed_1001"]


def test_a_rate_at_which_a_seed_diverged_is_not_chosen(tmp_path):
    on = tiny_problem(
        module=lambda lr: TinyNet(lr=lr, metric="tune_loss", blow_up=lr == 0.2),
        monitor="tune_loss",
        budget=Budget(max_steps=10, eval_every=5),
    )
    tuned = tune(tmp_path, on=on, rates=(0.001, 0.2))
    assert tuned.grid["diverged"].tolist() == [0, 2, 0, 2]
    assert tuned.study.arms[0].options == {"lr": 0.001}


def test_a_shorter_budget_evaluates_once_at_its_end(tmp_path):
    tuned = tune(tmp_path, max_steps=4, rates=(0.1,))
    assert tuned.grid["seeds"].tolist() == [2, 2]


@pytest.mark.parametrize("rates", [(), (0.1, 0.1)])
def test_a_grid_that_is_none_is_refused(tmp_path, rates):
    with pytest.raises(ValueError, match="empty or repeats one"):
        tune(tmp_path, rates=rates)


def test_tuning_on_the_metric_compared_by_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Tune on a validation split"):
        tune(tmp_path, on=tiny_problem())


def test_an_arm_that_no_rate_trains_is_named(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [Failing()]))
    with (
        pytest.warns(CellsFailedWarning, match="2 of 2 cells failed"),
        pytest.raises(RuntimeError, match="No learning rate of the grid trained arm 'a'"),
    ):
        tune(tmp_path, study, rates=(0.1,))
