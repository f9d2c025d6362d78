import math

import pandas as pd

from bn_lightning.analysis.measures_by_run import aligned_at_blow_up, measures_by_run


def results(rows):
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])


def test_medians_are_over_layers_and_the_steps_before_the_blow_up_without_dead_layers():
    table = results(
        [
            ("a", 0, 0, "x", "gradient_shift_relative", 1.0),
            ("a", 0, 0, "y", "gradient_shift_relative", 3.0),
            ("a", 0, 1, "x", "gradient_shift_relative", 5.0),
            ("a", 0, 1, "y", "gradient_shift_relative", math.nan),
            ("a", 0, 2, "x", "gradient_shift_relative", 1e18),
            ("a", 0, 0, "x", "gradient_shift_cosine", -0.5),
            ("a", 0, 1, "x", "gradient_shift_cosine", 0.5),
            ("b", 0, 0, "x", "gradient_shift_relative", 7.0),
        ]
    )
    labels = pd.DataFrame(
        {"arm": ["a", "b"], "seed": [0, 0], "label": ["diverged", "converged"], "blow_up": [2, math.nan]}
    )
    found = measures_by_run(table, labels).set_index(["arm", "measure"])["value"]
    assert found["a", "gradient_shift"] == 3.0
    assert found["a", "gradient_cosine"] == 0.0
    assert found["a", "negative_cosines"] == 0.5
    assert found["b", "gradient_shift"] == 7.0
    assert math.isnan(found["b", "effective_beta"])


def test_diverged_runs_are_aligned_at_their_blow_up():
    rows = [("a", 0, step, "", "effective_beta", float(step)) for step in range(8)]
    rows += [("b", 0, step, "", "effective_beta", 1.0) for step in range(8)]
    labels = pd.DataFrame(
        {"arm": ["a", "b"], "seed": [0, 0], "label": ["diverged", "converged"], "blow_up": [5, math.nan]}
    )
    found = aligned_at_blow_up(results(rows), labels, window=3)
    assert set(found["arm"]) == {"a"}
    assert dict(zip(found["steps_left"], found["value"], strict=True)) == {3.0: 2.0, 2.0: 3.0, 1.0: 4.0, 0.0: 5.0}


def test_without_a_diverged_run_there_is_nothing_to_align():
    labels = pd.DataFrame({"arm": ["b"], "seed": [0], "label": ["converged"], "blow_up": [math.nan]})
    found = aligned_at_blow_up(results([("b", 0, 0, "", "effective_beta", 1.0)]), labels, window=3)
    assert found.empty
    assert list(found.columns) == ["arm", "seed", "steps_left", "measure", "value"]
