import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_lightning.analysis.run_labels import LABELS, blow_up_step, label_cells, label_run
from bn_lightning.errors import NoEffectWarning

FALLING = np.geomspace(2.3, 0.1, 40)


@pytest.mark.parametrize(
    ("losses", "label"),
    [
        (FALLING, "converged"),
        (np.geomspace(2.3, 1.9, 40), "converged"),  # not done falling, yet on its way
        (np.full(40, 2.3), "stuck"),
        (np.full(40, 2.2) + 0.02 * np.cos(np.arange(40)), "stuck"),
        (1.5 + np.cos(np.arange(40)), "oscillating"),
        (np.r_[2.3, np.tile([2.0, 4.0], 20)], "oscillating"),  # never learned, but anything but calm
        (np.geomspace(2.3, 1e6, 40), "diverged"),
        (np.r_[FALLING, math.nan], "diverged"),
        (np.r_[2.3, math.inf, FALLING], "diverged"),
    ],
)
def test_labels_follow_the_written_rules(losses, label):
    assert label_run(losses) == label


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=60), st.floats(1e-3, 1e3))
def test_labels_do_not_depend_on_the_unit_of_the_loss(losses, unit):
    scaled = [loss * unit for loss in losses]
    # A loss that lies on a threshold may fall on either side by rounding.
    last = np.array(losses[-math.ceil(len(losses) / 4) :]) / losses[0]
    edges = (np.median(last) - 2, np.median(last) - 0.9, np.subtract(*np.percentile(last, (90, 10))) - 0.25)
    if min(map(abs, edges)) > 1e-9:
        assert label_run(scaled) == label_run(losses)


def test_one_outlier_in_the_last_quarter_does_not_make_a_run_diverged():
    losses = FALLING.copy()
    losses[-2] = 50.0
    assert label_run(losses) == "oscillating"


def test_a_run_that_was_stopped_after_a_few_steps_is_diverged():
    assert label_run([2.3, math.nan]) == "diverged"


def test_refuses_a_run_too_short_to_label():
    with pytest.raises(ValueError, match=r"4 or more training losses, got 3"):
        label_run([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("losses", "step"),
    [([1, 1, 9, 1, 1], None), ([1, 1, 9, 9, math.nan], 2), ([1, 1, math.nan, 1, 9], 4), ([math.nan, math.nan], 0)],
)
def test_the_blow_up_is_where_the_loss_leaves_for_good(losses, step):
    assert blow_up_step(losses) == step


def test_cells_are_labelled_one_by_one():
    rows = [("a", seed, step, "step_loss", loss) for seed in (0, 1) for step, loss in enumerate(FALLING)]
    rows += [("b", 0, step, "step_loss", 2.0 if step < 5 else math.nan) for step in range(9)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "step", "quantity", "value"])
    found = label_cells(table.sample(frac=1, random_state=0))  # whatever the order of the rows
    found = found.sort_values(["arm", "seed"])
    assert found["label"].tolist() == ["converged", "converged", "diverged"]
    assert found["blow_up"].isna().tolist() == [True, True, False]
    assert found["blow_up"].iloc[2] == 5
    assert set(found["label"]) <= set(LABELS)


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_refuses_a_first_loss_without_multiples(first):
    losses = np.linspace(first, first - 4, 20)
    with pytest.raises(ValueError, match=r"multiples of the loss of step 0, which must be above 0, got (0|-1)\."):
        label_run(losses)
    with pytest.raises(ValueError, match=r"loss of step 0, which must be above 0"):
        blow_up_step(losses)


def test_cells_without_a_label_are_left_out_and_named():
    rows = [("a", 0, step, "step_loss", loss) for step, loss in enumerate(FALLING)]
    rows += [("b", 1, step, "step_loss", -loss) for step, loss in enumerate(FALLING)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "step", "quantity", "value"])
    with pytest.warns(NoEffectWarning, match=r"1 of 2 runs have no label.*not being above 0 \(b/1\)"):
        found = label_cells(table)
    assert found["arm"].tolist() == ["a"]
    with pytest.raises(ValueError, match=r"1 of 1 runs have no label"):
        label_cells(table[table["arm"] == "b"])


def test_says_which_study_records_what_labels_need():
    with pytest.raises(ValueError, match=r"hold no 'step_loss'.*run the study divergence"):
        label_cells(pd.DataFrame({"arm": [], "seed": [], "step": [], "quantity": [], "value": []}))
