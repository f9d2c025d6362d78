import pandas as pd
import pytest
import torch
from peek import peek, recorded
from tiny import tiny_problem
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.analysis.studies.recalibration import ESTIMATORS, MOMENTA, by_statistics, study


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    whole = study(tiny_problem())
    folder = tmp_path_factory.mktemp("recalibration")
    return {arm.name: peek(tiny_problem(), arm, folder / arm.name) for arm in whole.arms}


def test_the_norms_have_the_momentum(runs):
    for momentum, (seen, _) in zip(MOMENTA, runs.values(), strict=True):
        assert {part.momentum for part in seen.module.modules() if isinstance(part, _BatchNorm)} == {momentum}


def test_momentum_changes_no_weight_and_no_estimate_but_ema(runs):
    (first, one), (last, other) = runs["m0.1"], runs["m0.001"]
    for name, value in first.ending.items():
        if "running" not in name:
            assert torch.equal(value, last.ending[name]), name
    for estimator in ESTIMATORS:
        found = [recorded(training, f"val_loss_{estimator}") for training in (one, other)]
        assert found[0].keys() == {5, 10}
        assert (found[0] == found[1]) == (estimator != "ema"), estimator
    assert recorded(one, "val_loss")[10] != recorded(other, "val_loss")[10]


def test_a_small_momentum_lags_more(runs):
    lags = [
        [value for _, _, name, value in training.rows if name == "running_mean_lag"]
        for _, training in (runs["m0.1"], runs["m0.001"])
    ]
    assert len(lags[0]) == len(lags[1]) == 2
    assert lags[1][-1] > lags[0][-1]


def rows():
    found = []
    for arm in ("m0.1", "m0.01"):
        for step in (0, 5):
            found.append((arm, step, "", "val_loss", 1.0))
            if step:
                found += [(arm, step, "", f"val_loss_{name}", 0.75) for name in ("pooled", "ema")]
                found += [(arm, step, f"net.{i}", "running_mean_lag", 0.1 * i) for i in (1, 2, 6)]
                found += [(arm, step, f"net.{i}", "running_variance_lag", -1.0 * i) for i in (1, 2, 6)]
    table = pd.DataFrame(found, columns=["arm", "step", "layer", "quantity", "value"])
    return table.assign(seed=0, study="recalibration")


def test_one_row_for_every_kind_of_statistics_from_the_first_step_on():
    table = by_statistics(rows(), study(tiny_problem()))
    assert set(table["step"]) == {5}
    assert set(zip(table["statistics"], table["value"], strict=True)) == {
        ("running", 1.0),
        ("pooled", 0.75),
        ("ema", 0.75),
    }
    assert len(table) == 6


@pytest.mark.parametrize(
    ("name", "values"), [("metric", [1.0, 0.75, 0.75]), ("gain", [-0.25, -0.25]), ("lag", [0.2, 2.0])]
)
def test_the_figures_show_a_known_table(name, values):
    whole = study(tiny_problem())
    (figure,) = [one for one in whole.figures if one.name == name]
    axes = figure.draw(rows(), pd.DataFrame(), whole).axes
    assert [ax.get_title() for ax in axes] == ["momentum 0.1", "momentum 0.01"]
    drawn = [line.get_ydata()[0] for line in axes[0].get_lines() if line.get_gid() == "mean"]
    assert drawn == [pytest.approx(value) for value in values]
