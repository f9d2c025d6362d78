import math

import numpy as np
import pandas as pd
import pytest
from runs import made_up_results, made_up_times
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.results import results_table
from bn_lightning.analysis.study import Arm
from bn_lightning.analysis.targets import has_reached, median_of_censored, metric_curves, times_to_target

ARMS = (Arm(name="none"), Arm(name="before"), Arm(name="after"))
PROBLEM = tiny_problem(monitor="test_accuracy", mode="max", target=0.94)


def test_times_are_those_of_a_plain_loop_over_every_curve():
    results = made_up_results()
    study = tiny_study(*ARMS, problem=PROBLEM)
    found = times_to_target(results, study)
    pd.testing.assert_frame_equal(found[["arm", "seed", "steps", "censored"]], made_up_times(results, 0.94))
    assert found["censored"].nunique() == 2
    assert found["seconds"].isna().all()


@pytest.mark.parametrize(("mode", "better", "worse"), [("max", 0.71, 0.699), ("min", 0.69, 0.701)])
def test_what_float32_makes_of_the_target_has_reached_it(mode, better, worse):
    values = [np.float32(0.7), np.float32(0.7) + np.float32(6e-8), 0.7, better, worse, math.nan]
    reached = has_reached(pd.Series(values, dtype="float64"), 0.7, mode)
    assert reached.tolist() == [True, True, True, True, False, False]


def rows(values, *, quantity="test_accuracy"):
    return [("s", "none", 0, 10 * place, "", quantity, value) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "steps", "censored"),
    [
        ([0.1, 0.95, 0.2], 10, False),
        ([0.1, 0.5, 0.9], 20, True),
        ([0.95, 0.95], 0, False),
        ([0.1, 0.96, math.nan], 10, False),
        ([0.1, 0.5, math.nan], 10, True),
        ([math.nan, math.nan], 0, True),
    ],
)
def test_first_passage_and_censoring(values, steps, censored):
    seconds = rows([0.5 * place for place in range(len(values))], quantity="training_seconds")
    found = times_to_target(results_table(rows(values) + seconds), tiny_study(*ARMS, problem=PROBLEM)).iloc[0]
    assert (found["steps"], found["censored"]) == (steps, censored)
    assert found["seconds"] == 0.5 * steps / 10


def test_a_loss_reaches_its_target_from_above():
    problem = tiny_problem(monitor="test_accuracy", mode="min", target=0.3)
    found = times_to_target(results_table(rows([0.9, 0.31, 0.3])), tiny_study(*ARMS, problem=problem))
    assert found["steps"].tolist() == [20]


def test_another_target_can_be_asked_for():
    found = times_to_target(results_table(rows([0.1, 0.6, 0.95])), tiny_study(*ARMS, problem=PROBLEM), target=0.5)
    assert found["steps"].tolist() == [10]


def test_a_problem_without_a_target_is_named():
    with pytest.raises(ValueError, match="'tiny' has no target"):
        times_to_target(results_table(rows([0.5])), tiny_study())


def test_a_metric_that_was_not_recorded_is_named_with_those_that_were():
    with pytest.raises(ValueError, match="no 'accuracy' of the whole model; they hold test_accuracy"):
        metric_curves(results_table(rows([0.5])), "accuracy")


@pytest.mark.parametrize("censored_from", [0, 1, 2, 3, 4, 5])
def test_the_median_of_five_with_the_last_ones_censored(censored_from):
    times = pd.Series([10, 20, 30, 40, 50])
    censored = pd.Series(np.arange(5) >= censored_from)
    assert median_of_censored(times, censored) == (30 if censored_from >= 3 else math.inf)


def test_the_median_of_an_even_number_and_of_none():
    assert median_of_censored(pd.Series([10, 20]), pd.Series([False, False])) == 15
    assert median_of_censored(pd.Series([10, 20]), pd.Series([False, True])) == math.inf
    assert math.isnan(median_of_censored(pd.Series([], dtype=float), pd.Series([], dtype=bool)))
