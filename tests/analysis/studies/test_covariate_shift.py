import dataclasses
import math

import pandas as pd
import pytest

from bn_lightning.analysis.catalog import default_problem
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies._one_factor import PLACEMENTS
from bn_lightning.analysis.studies.covariate_shift import GRADIENTS, NOISE, shift_by_run, study
from bn_lightning.analysis.study import Budget

COLUMNS = ["arm", "seed", "step", "layer", "quantity", "value"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    problem = dataclasses.replace(default_problem("covariate_shift"), budget=Budget(max_steps=10, eval_every=5))
    return execute(study(problem), seeds=1, out=tmp_path_factory.mktemp("shift"), progress=False)


def figures(run, results=None):
    table = run.results if results is None else results
    return {figure.name: figure.draw(table, run.cells, run.study) for figure in run.study.figures}


def test_both_families_and_the_noise_are_measured_in_every_arm(run):
    assert run.failures == ()
    quantities = ("gradient_shift_relative", "gradient_noise_relative", "activation_shift_wasserstein_normalised")
    for arm in PLACEMENTS:
        own = run.results[run.results["arm"] == arm]
        for quantity in quantities:
            assert set(own.loc[own["quantity"] == quantity, "step"]) <= {0, 5}
            assert (own["quantity"] == quantity).any()
        assert set(own.loc[own["quantity"] == quantities[0], "layer"]) == {"net.2", "net.4", "net.6"}


def test_norms_stand_where_the_arms_say():
    arms = {arm.name: arm.callbacks() for arm in study(default_problem("covariate_shift")).arms}
    assert len(arms["none"]) == 1
    assert [arms[name][0].placement for name in ("before", "after")] == ["before", "after"]


def shift_table():
    """Two layers, two steps; drift counts at the last step alone; a dead layer is NaN."""
    rows = [
        ("none", 0, step, layer, name, value)
        for name in ("gradient_shift_relative", "activation_drift_wasserstein_normalised")
        for (step, layer), value in zip(
            ((0, "a"), (0, "b"), (9, "a"), (9, "b")), (1.0, math.nan, 3.0, 5.0), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_run_is_boiled_down_to_medians_and_its_last_drift():
    values = shift_by_run(shift_table()).set_index("measure")["value"]
    assert values["gradient_shift_relative"] == 3.0
    assert values["activation_drift_wasserstein_normalised"] == 4.0


def test_every_figure_is_drawn_with_the_noise_as_a_line(run):
    made = figures(run)
    assert list(made) == ["families", "gradient_shift", "activation_shift", "metric"]
    panels = [ax for ax in made["gradient_shift"].axes if ax.get_lines()]
    assert len(panels) == 6
    noise = run.results[
        (run.results["quantity"] == NOISE["gradient_shift_relative"]) & (run.results["layer"] == "net.2")
    ]
    (line,) = [line for line in panels[0].get_lines() if line.get_gid() == "noise"]
    assert line.get_ydata().tolist() == noise.groupby("step")["value"].median().tolist()
    (legend,) = made["gradient_shift"].legends
    assert [text.get_text() for text in legend.get_texts()] == [*PLACEMENTS.values(), "between two batches"]


def test_dead_nets_get_a_note_in_place_of_a_figure(run):
    dead = run.results.assign(
        value=run.results["value"].where(~run.results["quantity"].str.contains("shift|drift"), math.nan)
    )
    made = figures(run, dead)
    assert [made[name].texts[0].get_text()[:8] for name in ("families", "gradient_shift", "activation_shift")] == [
        "No layer",
        "No layer",
        "No nonli",
    ]
    assert list(GRADIENTS) == list(NOISE)
