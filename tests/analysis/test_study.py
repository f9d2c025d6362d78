import dataclasses

import pytest
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.study import Arm, Budget, Study
from bn_lightning.errors import UnknownNameError


@pytest.mark.parametrize(
    "numbers", [{"max_steps": 0}, {"max_steps": 10, "eval_every": 0}, {"max_steps": 50, "seeds": 0}]
)
def test_a_budget_of_nothing_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 1"):
        Budget(**numbers)


def test_a_budget_whose_last_step_is_never_seen_is_refused():
    with pytest.raises(ValueError, match="multiple of eval_every"):
        Budget(max_steps=101, eval_every=50)


def test_a_mode_that_is_neither_is_refused():
    with pytest.raises(ValueError, match="'max' or 'min', not 'up'"):
        tiny_problem(mode="up")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b"])
def test_an_arm_whose_name_is_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="becomes a folder's"):
        Arm(name=name)


def test_a_study_without_arms_is_refused():
    with pytest.raises(ValueError, match="no arms"):
        dataclasses.replace(tiny_study(), arms=())


def test_arms_that_would_share_a_folder_are_refused():
    with pytest.raises(ValueError, match="share a name: bn, BN"):
        tiny_study(Arm(name="bn"), Arm(name="BN"))


def test_a_reference_that_is_no_arm_is_refused_with_the_near_ones():
    with pytest.raises(UnknownNameError, match=r"no arm of study 'rates' 'quik'\. Did you mean 'quick'"):
        tiny_study(reference="quik")


def test_some_arms_keep_the_order_and_the_reference_of_the_study():
    arms = (Arm(name="relu_none"), Arm(name="relu_before"), Arm(name="elu_none"), Arm(name="elu_before"))
    study = tiny_study(*arms)
    some = study.only(["elu_*", "relu_none"])
    assert [arm.name for arm in some.arms] == ["relu_none", "elu_none", "elu_before"]
    assert some.reference == "relu_none"
    assert study.only("elu_*").reference == "elu_none"


def test_arms_that_are_not_there_are_refused():
    for asked in ("slow,quik", ["slow", "quik"]):
        with pytest.raises(UnknownNameError, match=r"no arm of study 'rates' 'quik'. Did you mean 'quick'"):
            tiny_study().only(asked)
    with pytest.raises(ValueError, match="No arm of study 'rates' was named; there are: slow, quick"):
        tiny_study().only(" , ")


@pytest.mark.parametrize("name", ["training_loss", "training_seconds"])
def test_a_monitor_with_a_name_that_every_run_records_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is what every run records.*'val_{name}'"):
        tiny_problem(monitor=name)


def test_arms_may_come_one_by_one():
    study = Study(name="s", question="?", arms=(Arm(name=n) for n in "ab"), reference="a", problem=tiny_problem())
    assert [arm.name for arm in study.arms] == ["a", "b"]
