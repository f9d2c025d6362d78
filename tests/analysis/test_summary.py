import math

import numpy as np
import pytest
from runs import made_up_cells, made_up_results
from scipy import stats
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.results import results_table
from bn_lightning.analysis.statistics import holm
from bn_lightning.analysis.study import Arm
from bn_lightning.analysis.summary import compare, final_metric, summarise

ARMS = (Arm(name="none", label="no norm"), Arm(name="before"), Arm(name="after"))


def study(**changes):
    problem = {"monitor": "test_accuracy", "mode": "max", "target": 0.9}
    return tiny_study(*ARMS, problem=tiny_problem(**{**problem, **changes}))


def last_values(results, arm):
    """Accuracy at the last step by seed, by a plain loop."""
    found = {}
    for row in results.itertuples():
        if row.arm == arm and row.quantity == "test_accuracy" and row.step == results["step"].max():
            found[row.seed] = row.value
    return np.array([found[seed] for seed in sorted(found)])


def test_an_arm_is_summed_up_by_mean_interval_and_times():
    results = made_up_results()
    table = summarise(results, made_up_cells(results), study()).set_index("arm")
    expected = stats.ttest_1samp(last_values(results, "before"), 0).confidence_interval(0.95)
    row = table.loc["before"]
    assert row["test_accuracy"] == pytest.approx(last_values(results, "before").mean())
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["seeds"], row["diverged"], row["censored"]) == (6, 0, 0)
    assert row["steps_min"] <= row["steps_to_target"] <= row["steps_max"]
    assert table.loc["none", "label"] == "no norm"


def test_without_a_target_there_are_no_times():
    results = made_up_results()
    table = summarise(results, made_up_cells(results), study(target=None))
    assert not [name for name in table.columns if "steps" in name or "seconds" in name]
    comparisons = compare(results, made_up_cells(results), study(target=None))
    assert comparisons["quantity"].tolist() == ["test_accuracy", "test_accuracy"]


def test_diverged_runs_are_counted_and_left_out_of_the_mean():
    results = made_up_results(diverged=(("before", 2),))
    table = summarise(results, made_up_cells(results), study()).set_index("arm")
    values = last_values(results, "before")
    assert np.isnan(values).sum() == 1
    assert table.loc["before", "diverged"] == 1
    assert table.loc["before", "test_accuracy"] == pytest.approx(np.nanmean(values))
    row = compare(results, made_up_cells(results), study()).iloc[0]
    assert (row["pairs"], row["left_out"]) == (5, 1)
    assert row["verdict"] == "too few seeds (5); 1 diverged pairs left out"


def test_differences_are_paired_and_agree_with_scipy():
    results = made_up_results()
    table = compare(results, made_up_cells(results), study()).set_index(["arm", "quantity"])
    row = table.loc[("after", "test_accuracy")]
    paired = stats.ttest_rel(last_values(results, "after"), last_values(results, "none"))
    expected = paired.confidence_interval(0.95)
    assert row["estimate"] == pytest.approx((last_values(results, "after") - last_values(results, "none")).mean())
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["p"], row["smallest_p"], row["pairs"]) == (1 / 32, 1 / 32, 6)
    np.testing.assert_allclose(table["holm_p"], holm(table["p"].tolist()))


def times(arm, steps, *, target=0.9):
    """A run per seed that reaches the target at the given step, or never."""
    rows = []
    for seed, step in enumerate(steps):
        for at in (0, 50, 100, 200, 400, 800):
            value = target if step is not None and at >= step else 0.1
            rows.append(("s", arm, seed, at, "", "test_accuracy", value))
            rows.append(("s", arm, seed, at, "", "training_seconds", at / 100))
    return rows


def test_ratios_of_times_are_geometric_means_of_pairs():
    results = results_table(
        times("none", [400, 800, 800, 800, 800, 400]) + times("before", [50, 50, 100, 50, 100, 100])
    )
    table = compare(results, made_up_cells(results), study()).set_index("quantity")
    logs = np.log([8, 16, 8, 16, 8, 4])
    expected = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    for quantity in ("steps to target", "seconds to target"):
        row = table.loc[quantity]
        assert row["estimate"] == pytest.approx(np.exp(logs.mean()))
        assert (row["low"], row["high"]) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
        assert row["verdict"] == "faster; 6 seeds are too few for Holm"


def test_a_ratio_with_a_censored_pair_gets_no_verdict():
    results = results_table(times("none", [400, None, 800, 800, 800, 400, 400]) + times("before", [50] * 7))
    row = compare(results, made_up_cells(results), study()).set_index("quantity").loc["steps to target"]
    assert (row["pairs"], row["left_out"]) == (6, 1)
    assert row["verdict"] == "censored in 1 of 7 pairs"
    summary = summarise(results, made_up_cells(results), study()).set_index("arm")
    assert (summary.loc["none", "censored"], summary.loc["none", "steps_to_target"]) == (1, 800)


def test_a_target_reached_before_training_has_no_ratio_and_is_not_called_censored():
    results = results_table(times("none", [0, None, *[400] * 5]) + times("before", [0, 0, *[50] * 5]))
    table = compare(results, made_up_cells(results), study()).set_index("quantity")
    for quantity in ("steps to target", "seconds to target"):
        row = table.loc[quantity]
        assert (row["pairs"], row["left_out"]) == (5, 2)
        assert row["verdict"] == "censored in 1 of 7 pairs; reached before training in 1 of 7 pairs"


def test_times_that_were_not_recorded_are_not_called_censored():
    results = results_table(times("none", [400] * 6) + times("before", [50] * 6))
    untimed = results[(results["quantity"] != "training_seconds") | (results["seed"] > 0)]
    table = compare(untimed, made_up_cells(untimed), study()).set_index("quantity")
    assert table.loc["seconds to target", "verdict"] == "not timed in 1 of 6 pairs"


def test_holm_counts_the_comparisons_that_have_a_p():
    rows = [("s", "none", seed, 9, "", "test_accuracy", 0.0) for seed in range(6)]
    rows += [("s", "before", seed, 9, "", "test_accuracy", x) for seed, x in enumerate([0.8, 0.8, 0.7, 0.8, 0.8, -0.1])]
    table = compare(results_table(rows), made_up_cells(results_table(rows)), study())
    assert table["p"].notna().tolist() == [True, False, False]
    assert table["verdict"].iloc[0] == "better, but not after Holm"


def test_a_metric_that_is_not_finite_is_no_divergence():
    results = made_up_results(diverged=(("before", 2), ("before", 3)))
    cells = made_up_cells(results)
    cells.loc[(cells["arm"] == "before") & (cells["seed"] == 3), "label"] = "trained"
    table = summarise(results, cells, study()).set_index("arm")
    assert table.loc[["none", "before"], ["diverged", "not_finite"]].to_numpy().tolist() == [[0, 0], [1, 1]]
    row = compare(results, cells, study()).iloc[0]
    assert (row["pairs"], row["left_out"]) == (4, 2)
    expected = "too few seeds (4); 1 diverged pairs left out; 1 pairs without a finite metric left out"
    assert row["verdict"] == expected
    assert "not_finite" not in summarise(made_up_results(), made_up_cells(made_up_results()), study())


def test_an_arm_that_mostly_never_arrives_has_no_finite_median():
    results = results_table(times("none", [None, None, 400]))
    row = summarise(results, made_up_cells(results), study()).iloc[0]
    assert row["steps_to_target"] == math.inf
    assert (row["steps_min"], row["steps_max"]) == (400, 400)


def test_for_a_loss_lower_is_better():
    results = made_up_results()
    table = compare(results, made_up_cells(results), study(mode="min", target=None))
    assert (table["estimate"] > 0).all()
    assert table["verdict"].str.startswith("worse").all()


def test_only_seeds_that_both_arms_finished_are_paired():
    results = made_up_results()
    kept = results[~((results["arm"] == "before") & (results["seed"] == 0))]
    row = compare(kept, made_up_cells(kept), study()).iloc[0]
    assert row["pairs"] == 5


def test_nothing_to_compare_gives_an_empty_table_with_its_columns():
    results = results_table(times("none", [50]))
    table = compare(results, made_up_cells(results), study())
    assert table.empty
    assert "verdict" in table.columns


def test_the_last_value_is_that_of_the_last_step_whatever_the_order_of_rows():
    results = made_up_results(seeds=2)
    shuffled = results.sample(frac=1, random_state=1)
    np.testing.assert_array_equal(final_metric(shuffled, study()), final_metric(results, study()))
