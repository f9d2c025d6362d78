import functools

import pytest
from tiny import TinyData, TinyNet, tiny_problem, tiny_study

from bn_lightning.analysis.prepare import own_problem, prepare_study
from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.errors import UnknownNameError

OWN = {"model": TinyNet, "data": TinyData, "monitor": "val_loss"}


def test_by_name_the_problem_is_the_embedded_digits(monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    study = prepare_study("placement")
    assert (study.problem.name, study.problem.target) == ("digits", 0.95)
    assert study.problem.budget == Budget(max_steps=2000, eval_every=50, seeds=6)


def test_a_folder_makes_it_mnist(tmp_path, monkeypatch):
    problem = prepare_study("placement", data_dir=tmp_path).problem
    assert (problem.name, problem.budget.max_steps) == ("mnist", 50_000)
    monkeypatch.setenv("BN_LIGHTNING_DATA", str(tmp_path))
    assert prepare_study("placement").problem.name == "mnist"


def test_a_users_model_takes_the_place_of_the_problem():
    study = prepare_study(tiny_study(Arm(name="a")), **OWN, mode="min", target=0.5, max_steps=30)
    problem = study.problem
    assert (problem.name, problem.module, problem.data) == ("TinyNet", TinyNet, TinyData)
    assert (problem.monitor, problem.mode, problem.target, problem.budget.max_steps) == ("val_loss", "min", 0.5, 30)


@pytest.mark.parametrize("missing", sorted(OWN))
def test_what_a_users_problem_lacks_is_named(missing):
    given = {name: value for name, value in OWN.items() if name != missing}
    if missing == "monitor":
        given = {"model": TinyNet, "data": TinyData}
    with pytest.raises(ValueError, match=f"missing: {missing}"):
        prepare_study("placement", **given)


@pytest.mark.parametrize("changed", [{"model": TinyNet()}, {"data": TinyData()}])
def test_an_object_in_place_of_what_makes_it_is_refused(changed):
    with pytest.raises(TypeError, match=r"is called once for every cell.*lambda"):
        prepare_study("placement", **{**OWN, **changed})


def test_a_folder_beside_a_users_model_or_a_study_is_refused(tmp_path):
    for study, options in (("placement", OWN), (tiny_study(), {})):
        with pytest.raises(ValueError, match="this problem has its own"):
            prepare_study(study, data_dir=tmp_path, **options)


def test_arms_options_that_the_model_does_not_take_are_named():
    message = r"Arm 'a' makes the model of problem 'lambda' with lr=0\.5, which it does not take"
    with pytest.raises(ValueError, match=message):
        prepare_study(tiny_study(Arm(name="a", options={"lr": 0.5})), **{**OWN, "model": lambda: TinyNet()})


def test_another_metric_loses_the_target_that_was_fixed_for_the_first():
    study = tiny_study(problem=tiny_problem(target=0.1))
    assert prepare_study(study).problem.target == 0.1
    changed = prepare_study(study, monitor="val_acc", mode="max").problem
    assert (changed.monitor, changed.mode, changed.target) == ("val_acc", "max", None)
    assert prepare_study(study, monitor="val_acc", target=0.9).problem.target == 0.9


@pytest.mark.parametrize(
    ("max_steps", "eval_every", "expected"),
    [(None, None, 5), (100, None, 5), (3, None, 3), (12, None, 4), (100, 50, 50)],
)
def test_the_last_evaluation_falls_on_the_last_step(max_steps, eval_every, expected):
    budget = prepare_study(tiny_study(), max_steps=max_steps, eval_every=eval_every).problem.budget
    assert budget.eval_every == expected
    assert budget.max_steps == (max_steps or 10)


def test_steps_that_no_spacing_divides_are_refused():
    with pytest.raises(ValueError, match="multiple of eval_every"):
        prepare_study("placement", max_steps=1009)
    with pytest.raises(ValueError, match="at least 1"):
        prepare_study("placement", max_steps=0)


def test_trainer_options_are_added():
    problem = prepare_study(tiny_study(), trainer_options={"precision": "64"}).problem
    assert problem.trainer_options == {"accelerator": "cpu", "precision": "64"}


def helper(make, cls, **options):
    return make(cls, **options)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (TinyNet, "TinyNet"),
        (lambda: TinyNet(), "lambda"),
        (functools.partial(TinyNet, lr=1.0), "TinyNet"),
        (functools.partial(helper, helper, TinyNet, lr=1.0), "TinyNet"),
    ],
)
def test_a_problem_is_called_after_its_model(factory, name):
    assert own_problem(factory, TinyData, monitor="x").name == name


def test_chosen_arms_alone_are_run():
    assert [arm.name for arm in prepare_study("placement", arms="after, none").arms] == ["none", "after"]
    with pytest.raises(UnknownNameError, match=r"no arm of study 'placement' 'befor'. Did you mean 'before'"):
        prepare_study("placement", arms=("none", "befor"))


def test_a_mode_without_the_metric_it_is_of_is_refused():
    with pytest.raises(ValueError, match=r"mode \(--mode\) 'min' says which way .* but none is named"):
        prepare_study("placement", mode="min")
    with pytest.raises(ValueError, match=r"Name it by monitor \(--monitor\)"):
        prepare_study(tiny_study(), mode="max")


def test_a_metric_is_the_better_the_higher_unless_mode_says_otherwise():
    assert prepare_study(tiny_study(), monitor="val_acc").problem.mode == "max"
    assert prepare_study(tiny_study(), monitor="val_err", mode="min").problem.mode == "min"
    assert prepare_study(tiny_study()).problem.mode == "min"
