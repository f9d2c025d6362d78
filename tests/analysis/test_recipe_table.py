import dataclasses
import math

import pandas as pd
import pytest
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.recipe_table import recipe_table, recipe_text
from bn_lightning.analysis.study import Arm, Budget

NAMES = ("plain", "x5", "x30", "mine")


def study(target=0.9):
    budget = Budget(max_steps=400, eval_every=100)
    problem = tiny_problem(monitor="accuracy", mode="max", target=target, budget=budget)
    return tiny_study(*[Arm(name=name, label=name.upper()) for name in NAMES], problem=problem)


def curves(**reached):
    """Accuracy 0.5, then 0.95 from the step on that each seed of an arm reached it; None for never."""
    rows = []
    for arm, seeds in reached.items():
        for seed, at in enumerate(seeds):
            for step in range(0, 401, 100):
                value = 0.95 + 0.01 * seed if at is not None and step >= at else 0.5
                rows.append(("s", arm, seed, step, "", "accuracy", value))
    results = pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])
    cells = results[["study", "arm", "seed"]].drop_duplicates().assign(status="done", label="trained")
    return results, cells


RUN = curves(plain=[400, 400, 400], x5=[100, 200, 100], x30=[None, None, 100])


def test_steps_ratios_and_best_values_are_those_of_the_curves():
    table = recipe_table(*RUN, study())
    assert table.index.tolist() == ["plain", "x5", "x30"]  # "mine" was not run
    assert table["steps"].tolist() == [400, 100, math.inf]
    assert table["reached"].tolist() == [3, 3, 1]
    # 4, 2 and 4 times as fast.
    assert table.loc["x5", "ratio"] == pytest.approx(32 ** (1 / 3))
    assert table.loc["x5", "low"] < 32 ** (1 / 3) < table.loc["x5", "high"]
    assert table.loc["plain", "best"] == pytest.approx(0.96)
    assert table.loc["x30", "best"] == pytest.approx((0.5 + 0.5 + 0.97) / 3)


def test_the_papers_numbers_stand_beside():
    table = recipe_table(*RUN, study())
    assert table.loc["plain", ["paper_steps", "paper_ratio", "paper_best"]].tolist() == [31.0, 1.0, 72.2]
    # The paper: 14 times fewer steps.
    assert table.loc["x5", "paper_ratio"] == pytest.approx(31.0 / 2.1)
    headers, rows = recipe_text(table, study())
    assert headers[1] == "steps to 0.9"
    assert rows[1][:3] == ["X5", "100", "3.17"]
    assert rows[1][5:] == ["2.1 M", "14.8", "73.0 %"]
    assert rows[2][1] == "not reached (1 of 3)"
    assert rows[0][2:4] == ["–", "–"]


def test_without_a_target_best_values_are_left():
    timeless = study(target=None)
    table = recipe_table(*RUN, timeless)
    assert table["steps"].isna().all()
    _, rows = recipe_text(table, timeless)
    assert [row[1] for row in rows] == ["–"] * 3
    assert rows[0][4].startswith("0.9600 ± 0.02")


def test_arms_of_ones_own_have_no_published_numbers():
    own = dataclasses.replace(study(), arms=(Arm(name="plain"), Arm(name="mine")))
    table = recipe_table(*curves(plain=[400], mine=[100]), own)
    assert math.isnan(table.loc["mine", "paper_steps"])
    _, rows = recipe_text(table, own)
    assert rows[1][1:4] == ["100", "4", "–"]
    assert rows[1][5:] == ["–", "–", "–"]
