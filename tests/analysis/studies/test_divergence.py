import dataclasses
import functools

import pytest
from matplotlib.figure import Figure

from bn_lightning.analysis.run_labels import label_cells
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies.divergence import MULTIPLES, NORMS, default_problem, study
from bn_lightning.analysis.study import Budget


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    problem = dataclasses.replace(default_problem(), budget=Budget(max_steps=12, eval_every=6))
    whole = study(problem)
    few = dataclasses.replace(
        whole, arms=tuple(arm for arm in whole.arms if arm.name in ("none_x1", "before_x1", "after_x1", "moving_x100"))
    )
    return execute(few, seeds=1, out=tmp_path_factory.mktemp("divergence"), progress=False)


def test_every_norm_is_crossed_with_every_rate():
    arms = study(default_problem()).arms
    assert {(arm.factors["norm"], arm.factors["rate"]) for arm in arms} == {(n, r) for n in NORMS for r in MULTIPLES}
    assert len(arms) == len(NORMS) * len(MULTIPLES)


def test_measures_and_the_loss_of_every_step_are_recorded(run):
    assert not run.failures
    mine = run.results[run.results["arm"] == "before_x1"]
    assert sorted(mine.loc[mine["quantity"] == "step_loss", "step"]) == list(range(12))
    for quantity in ("gradient_shift_relative", "activation_shift_wasserstein_normalised", "effective_beta"):
        # The first 40 steps are measured one by one.
        assert set(mine.loc[mine["quantity"] == quantity, "step"]) == set(range(12))


def test_normalising_by_moving_averages_at_a_large_rate_diverges(run):
    labels = label_cells(run.results).set_index("arm")["label"]
    assert labels["moving_x100"] == "diverged"
    assert labels["before_x1"] != "diverged"


def test_a_run_that_was_stopped_early_ends_in_nan(run):
    losses = run.results[(run.results["arm"] == "moving_x100") & (run.results["quantity"] == "step_loss")]
    assert losses.sort_values("step")["value"].isna().iloc[-1]


def test_the_rates_are_multiplied(run):
    # The plain arm and the same one at 100 times its rate start from one loss and part after the first step.
    (make,) = {arm.callbacks for arm in run.study.arms if arm.name == "moving_x100"}
    assert isinstance(make, functools.partial)
    rates = [callback.factor for callback in make() if hasattr(callback, "factor")]
    assert rates == [100.0]


def test_every_figure_is_drawn(run):
    for figure in run.study.figures:
        drawn = figure.draw(run.results, run.cells, run.study)
        assert isinstance(drawn, Figure)
        assert any(ax.has_data() for ax in drawn.axes) or drawn.texts
