import json

import numpy as np
import pytest
from tiny import TinyData, TinyNet, tiny_problem

from bn_lightning.analysis.catalog import find_study, study_names
from bn_lightning.analysis.prepare import prepare_study
from bn_lightning.analysis.publish import publish, publish_folder
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.summary import summarise
from bn_lightning.errors import UnknownNameError


def test_an_unknown_study_is_answered_with_the_near_ones():
    with pytest.raises(UnknownNameError, match=r"no study 'placment'. Did you mean 'placement'.*its file, as placment"):
        find_study("placment")


def test_a_folder_of_digits_for_another_problem_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .* names a folder for the package's own digits"):
        find_study("placement", problem=tiny_problem(), data_dir=tmp_path)


def thinned(study):
    """Of a grid, whose arms differ in numbers only, some of each row and column."""
    return study.only([arm.name for arm in study.arms[::3]]) if len(study.arms) > 20 else study


@pytest.mark.parametrize("name", study_names())
def test_every_study_trains_on_digits_and_its_report_draws_every_figure(tmp_path, monkeypatch, name):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    # Pairs of seeds in one study are enough; one of many arms, measured in every step, gets fewer steps.
    study = prepare_study(name, max_steps=6, eval_every=3)
    seeds = 2 if name == "placement" else 1
    if len(study.arms) > 10:
        study = prepare_study(name, max_steps=4, eval_every=2)
    study = thinned(study)
    run = execute(study, seeds=seeds, out=tmp_path / "run", progress=False)
    assert run.failures == ()
    assert set(run.results["arm"]) == {arm.name for arm in study.arms}
    curves = run.results[run.results["quantity"] == study.problem.monitor]
    for arm in study.arms:
        budget = arm.budget or study.problem.budget
        assert sorted(set(curves.loc[curves["arm"] == arm.name, "step"])) == [0, budget.eval_every, budget.max_steps]
    diverged = set(run.cells.loc[run.cells["label"] == "diverged", "arm"])
    assert np.isfinite(curves.loc[(curves["step"] == 0) | ~curves["arm"].isin(diverged), "value"]).all()
    assert json.loads(run.cells["factors"].iloc[0])
    # From the files alone, as `bn-lightning report` does it; what a run writes itself comes from the same function.
    published = publish_folder(run.out)
    assert published.summary.equals(summarise(run.results, run.cells, study))
    assert published.summary["arm"].tolist() == [arm.name for arm in study.arms]
    assert sorted(path.stem for path in (run.out / "figures").iterdir()) == sorted(f.name for f in study.figures)


# The tiny data hold fewer samples than the largest batches of the study batch_size, which says so.
@pytest.mark.filterwarnings("ignore:A batch size of:bn_lightning.errors.NoEffectWarning")
@pytest.mark.parametrize("name", study_names())
def test_every_study_trains_a_users_own_model(tmp_path, name):
    study = prepare_study(
        name, model=TinyNet, data=TinyData, monitor="val_loss", mode="min", max_steps=10, eval_every=5
    )
    study = thinned(study)
    run = execute(study, seeds=1, out=tmp_path / "run", progress=False)
    assert run.failures == ()
    assert set(run.results["arm"]) == {arm.name for arm in study.arms}
    publish(run.out, study=study, results=run.results, cells=run.cells)


def test_placement_inserts_where_it_says_and_follows_one_unit(tmp_path):
    study = prepare_study("placement", max_steps=50, eval_every=50)
    run = execute(study, seeds=1, out=tmp_path / "run", progress=False)
    followed = run.results[run.results["quantity"].str.contains("_unit")]
    assert set(followed["layer"]) == {"net.4"}
    assert set(followed["arm"]) == {arm.name for arm in study.arms}
    assert followed.groupby("arm")["quantity"].nunique().tolist() == [3] * 5
    layers = run.results[run.results["quantity"] == "preactivation_var"].pivot_table(
        index="arm", columns="layer", values="value"
    )
    # Only right before the nonlinearity does its input have the norm's unit variance.
    assert layers.loc["before", "net.0"] == pytest.approx(1, abs=0.3)
    assert layers.loc["before_plain", "net.0"] == pytest.approx(1, abs=0.3)
    assert abs(layers.loc["none", "net.0"] - 1) > 0.5
    # The first layer of the two others receives the same.
    assert layers.loc["after", "net.0"] == pytest.approx(layers.loc["none", "net.0"], rel=0.5)
