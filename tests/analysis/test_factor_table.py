import math

import pandas as pd
import pytest
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.factor_table import factor_table, learned, learning_threshold
from bn_lightning.analysis.study import Arm

ARMS = tuple(Arm(name=name, factors={"rate": rate}) for name, rate in (("slow", 0.1), ("fast", 1.0)))


def results():
    """The loss before training, at step 5 and at step 10, of two seeds."""
    curves = {
        ("slow", 0): (4, 3, 2.5),
        ("slow", 1): (4, 2, 2.0),
        ("fast", 0): (4, 1, 0.0),
        ("fast", 1): (6, 5, math.nan),
    }
    rows = [
        ("rates", arm, seed, step, "", "val_loss", value)
        for (arm, seed), values in curves.items()
        for step, value in zip((0, 5, 10), values, strict=True)
    ]
    rows += [("rates", "fast", seed, 10, "", "val_loss_pooled", 0.25 + seed) for seed in (0, 1)]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])


def study(**changes):
    return tiny_study(*ARMS, problem=tiny_problem(**changes))


def test_one_row_a_run_with_its_factors_in_the_order_of_the_arms():
    table = factor_table(results().iloc[::-1], study())
    assert table["arm"].tolist() == ["slow", "slow", "fast", "fast"]
    assert table["rate"].tolist() == [0.1, 0.1, 1.0, 1.0]
    assert table.sort_values(["rate", "seed"])["value"].tolist()[:3] == [2.5, 2.0, 0.0]
    assert table["value"].isna().sum() == 1


def test_of_another_quantity_the_runs_without_it_are_left_out():
    table = factor_table(results(), study(), quantity="val_loss_pooled")
    assert table[["arm", "seed", "value"]].to_numpy().tolist() == [["fast", 0, 0.25], ["fast", 1, 1.25]]


def test_a_quantity_that_nobody_recorded_is_named():
    with pytest.raises(ValueError, match=r"hold no 'val_acc' of the whole model; they hold val_loss"):
        factor_table(results(), study(), quantity="val_acc")


def test_the_threshold_is_the_target_or_the_middle_of_start_and_best():
    assert learning_threshold(results(), study(target=0.7)) == 0.7
    assert learning_threshold(results(), study()) == pytest.approx((4 + 0) / 2)
    assert learning_threshold(results(), study(mode="max")) == pytest.approx((4 + 2.5) / 2)


def test_a_run_at_the_threshold_learned_and_one_that_diverged_did_not():
    table = learned(results(), study()).sort_values(["arm", "seed"])
    assert dict(zip(zip(table["arm"], table["seed"], strict=True), table["value"], strict=True)) == {
        ("fast", 0): 1.0,
        ("fast", 1): 0.0,
        ("slow", 0): 0.0,
        ("slow", 1): 1.0,
    }
    assert learned(results(), study(mode="max", target=2.5))["value"].sum() == 1
