import dataclasses

import pytest

from bn_lightning.analysis.catalog import default_problem
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies._one_factor import PLACEMENTS
from bn_lightning.analysis.studies.smoothness import BETAS, study
from bn_lightning.analysis.study import Budget


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    problem = dataclasses.replace(default_problem("smoothness"), budget=Budget(max_steps=20, eval_every=10))
    return execute(study(problem), seeds=1, out=tmp_path_factory.mktemp("smoothness"), progress=False)


def test_every_arm_has_ranges_and_both_betas(run):
    assert run.failures == ()
    for arm in PLACEMENTS:
        own = run.results[run.results["arm"] == arm].pivot_table(index="step", columns="quantity", values="value")
        measured = own.dropna(subset="effective_beta")
        assert measured.index.tolist() == [0, 5, 10, 15]
        assert (measured["loss_range_max"] >= measured["loss_range_min"]).all()
        raw, normalised = (measured[name] for name in BETAS)
        assert (raw != normalised).all()


def test_norms_stand_where_the_arms_say():
    arms = {arm.name: arm.callbacks() for arm in study(default_problem("smoothness")).arms}
    assert [arms[name][0].placement for name in ("before", "after")] == ["before", "after"]
    (monitor,) = arms["none"]
    # Santurkar et al.: 1/2 to 4 learning rates.
    assert monitor.multiples == (0.5, 1, 2, 4)


def test_beta_is_drawn_against_the_loss_of_its_step(run):
    figure = next(f for f in run.study.figures if f.name == "beta_at_equal_loss")
    drawn = figure.draw(run.results, run.cells, run.study)
    assert [ax.get_ylabel() for ax in drawn.axes] == list(BETAS.values())
    table = run.results[run.results["arm"] == "none"].pivot_table(index="step", columns="quantity", values="value")
    (first, *_) = [line for line in drawn.axes[0].get_lines() if line.get_gid() == "step"]
    measured = table.dropna(subset="effective_beta")
    assert first.get_xdata().tolist() == measured["smoothness_loss"].tolist()
    assert first.get_ydata().tolist() == measured["effective_beta"].tolist()
    without = run.results[~run.results["quantity"].isin(list(BETAS))]
    assert figure.draw(without, run.cells, run.study).texts[0].get_text().startswith("No run has an effective")


def test_the_papers_three_panels_are_drawn(run):
    figure = run.study.figures[0]
    assert figure.name == "smoothness"
    assert len(figure.draw(run.results, run.cells, run.study).axes) == 3
