import math

import pandas as pd
import pytest
from peek import peek, recorded
from tiny import tiny_problem

from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies.batch_size import NORMS, SIZES, budget_of, by_statistics, study
from bn_lightning.analysis.study import Budget
from bn_lightning.surgery.carried import plan_of

PROBLEM = tiny_problem(budget=Budget(max_steps=8, eval_every=4))
SOME = study(PROBLEM).only("none_b2,before_b2,before_b4,before_b512")


def test_every_size_with_and_without_a_norm():
    arms = study(tiny_problem()).arms
    assert {(arm.factors["norm"], arm.factors["batch_size"]) for arm in arms} == {(n, b) for n in NORMS for b in SIZES}
    assert len(arms) == 18


@pytest.mark.parametrize("size", SIZES)
def test_every_arm_sees_the_same_number_of_samples_and_is_evaluated_as_often(size):
    budget = budget_of(Budget(max_steps=320, eval_every=80), size)
    assert budget.max_steps * size == 320 * 64
    assert budget.max_steps // budget.eval_every == 4


def test_at_least_one_step_between_evaluations():
    assert budget_of(Budget(max_steps=4, eval_every=2), 512) == Budget(max_steps=2, eval_every=1)


def test_an_arm_trains_on_batches_of_its_size_for_its_own_steps(tmp_path):
    seen, training = peek(PROBLEM, study(PROBLEM).arm("before_b16"), tmp_path)
    assert seen.sizes == [16] * 32
    assert sorted(recorded(training, "val_loss")) == [0, 16, 32]
    assert recorded(training, "val_loss_pooled").keys() == {32}
    assert seen.rates == [pytest.approx(0.2)]
    assert plan_of(seen.module) is not None


def test_a_finished_cell_of_another_length_is_trained_again(tmp_path):
    few = study(PROBLEM).only("none_b32")
    assert execute(few, seeds=1, out=tmp_path / "run", progress=False).trained == 1
    assert execute(few, seeds=1, out=tmp_path / "run", progress=False).trained == 0
    longer = study(tiny_problem(budget=Budget(max_steps=16, eval_every=8))).only("none_b32")
    with pytest.warns(UserWarning, match=r"trained otherwise \(eval_every, max_steps changed\)"):
        run = execute(longer, seeds=1, out=tmp_path / "run", progress=False)
    curve = run.results[run.results["quantity"] == "val_loss"]
    assert sorted(curve["step"]) == [0, 16, 32]


def table():
    rows = []
    for arm, value in (("none_b2", 0.5), ("before_b2", math.nan), ("before_b4", 0.6), ("before_b512", 0.7)):
        rows += [(arm, 2, "val_loss", value), (arm, 0, "batch_size", 32.0 if arm.endswith("512") else float(arm[-1]))]
        if arm != "none_b2":
            rows += [(arm, 2, f"val_loss_{name}", value + extra) for name, extra in (("pooled", 0.2), ("paper", 0.1))]
    found = pd.DataFrame(rows, columns=["arm", "step", "quantity", "value"])
    return found.assign(study="batch_size", seed=0, layer="")


def test_one_run_has_a_row_for_every_kind_of_statistics_and_one_that_could_not_have_its_size_none():
    found = by_statistics(table(), SOME)
    keyed = {(row.arm, row.statistics): (row.batch_size, row.value) for row in found.itertuples()}
    assert keyed["none_b2", "none"] == (2, 0.5)
    assert keyed["before_b4", "running"] == (4, 0.6)
    assert keyed["before_b4", "pooled"] == (4, pytest.approx(0.8))
    assert math.isnan(keyed["before_b2", "paper"][1])
    assert len(keyed) == len(found) == 7


def test_the_gain_is_against_running_averages_in_the_same_run():
    (gain,) = [figure for figure in SOME.figures if figure.name == "gain"]
    (ax,) = gain.draw(table(), pd.DataFrame(), SOME).axes
    found = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines() if line.get_gid() == "mean"}
    assert found == {"pooled": [pytest.approx(0.2)], "the paper's": [pytest.approx(0.1)]}
