import numpy as np
import pandas as pd
import pytest
from runs import made_up_results

from bn_lightning.analysis.plots.selection import arm_labels, near_names, select_quantity, steps_by_seed

RESULTS = made_up_results(seeds=2, max_steps=100)


def test_only_the_quantity_of_the_layer_is_taken():
    rows = select_quantity(RESULTS, "preactivation_unit12_p50", layer="net.4")
    assert set(rows["quantity"]) == {"preactivation_unit12_p50"}
    assert set(rows["layer"]) == {"net.4"}
    assert len(rows) == 3 * 2 * 3


def test_an_empty_layer_survives_a_csv_file(tmp_path):
    RESULTS.to_csv(tmp_path / "results.csv", index=False)
    read = pd.read_csv(tmp_path / "results.csv")
    assert read["layer"].isna().any()
    assert len(select_quantity(read, "test_accuracy")) == 3 * 2 * 3


def test_an_unknown_quantity_names_the_near_ones():
    with pytest.raises(ValueError, match=r"No results of quantity 'test_acuracy' for the whole model.*'test_accuracy'"):
        select_quantity(RESULTS, "test_acuracy")


def test_a_quantity_of_layers_asked_of_the_model_names_the_layers():
    with pytest.raises(ValueError, match=r"recorded for the layers 'net.4': pass layer="):
        select_quantity(RESULTS, "preactivation_unit12_p50")


def test_an_unknown_layer_names_the_near_ones():
    with pytest.raises(ValueError, match=r"No results of layer 'net.3': the table holds results of 'net.4'"):
        select_quantity(RESULTS, "preactivation_unit12_p50", layer="net.3")


def test_a_table_without_the_columns_is_refused():
    with pytest.raises(ValueError, match=r"lacks layer, value and has arm, seed, step, quantity"):
        select_quantity(RESULTS[["arm", "seed", "step", "quantity"]], "test_accuracy")


def test_two_values_for_one_step_are_refused():
    with pytest.raises(ValueError, match=r"several values for arm 'none', seed 0, step 0: the table mixes runs"):
        select_quantity(pd.concat([RESULTS, RESULTS]), "test_accuracy")


def test_arms_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"Asked to draw 'befor': the table holds the arms 'before', 'after', 'none'"):
        arm_labels(RESULTS, ["befor"])


def test_arms_keep_the_asked_order_and_labels_with_those_that_have_no_rows():
    labels = arm_labels(RESULTS, {"after": "A", "missing": "M", "none": "N"})
    assert list(labels.items()) == [("after", "A"), ("missing", "M"), ("none", "N")]


def test_the_layout_sorts_steps_and_seeds_and_turns_what_is_not_finite_into_nan():
    rows = pd.DataFrame({"arm": "a", "seed": [1, 0, 0], "step": [9, 9, 2], "value": [-np.inf, 3.0, np.nan]})
    table = steps_by_seed(rows, "a")
    assert table.index.tolist() == [2, 9]
    assert table.columns.tolist() == [0, 1]
    np.testing.assert_array_equal(table.to_numpy(), [[np.nan, np.nan], [3.0, np.nan]])


def test_long_lists_of_names_are_cut_and_counted():
    assert near_names("x", [f"name {i}" for i in range(10)]).endswith("and 2 more")
    assert near_names("x", []) == "nothing"


def test_a_label_is_no_formula():
    from matplotlib.figure import Figure

    labels = arm_labels(pd.DataFrame({"arm": ["$^$"]}), None)
    figure = Figure()
    figure.text(0.5, 0.5, labels["$^$"])
    figure.draw_without_rendering()
