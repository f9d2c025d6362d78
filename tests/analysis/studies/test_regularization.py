import math

import pandas as pd
import pytest
from peek import peek, recorded
from tiny import tiny_problem
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.analysis.studies.regularization import DECAYS, DROPOUTS, NORMS, gaps, study


def test_dropout_is_crossed_with_weight_decay_and_norm():
    arms = study(tiny_problem()).arms
    found = {(arm.factors["norm"], arm.factors["dropout"], arm.factors["weight_decay"]) for arm in arms}
    assert found == {(norm, p, decay) for norm in NORMS for p in DROPOUTS for decay in DECAYS}
    assert len(arms) == 24


@pytest.mark.parametrize(
    ("arm", "dropouts", "decay", "norms"), [("none_p0.5_l0.01", [0.5], 0.01, 0), ("before_p0_l0.001", [], 0.001, 1)]
)
def test_an_arm_has_the_dropout_the_decay_and_the_norm_it_says(tmp_path, arm, dropouts, decay, norms):
    seen, training = peek(tiny_problem(), study(tiny_problem()).arm(arm), tmp_path)
    parts = list(seen.module.modules())
    assert [part.p for part in parts if isinstance(part, nn.Dropout)] == dropouts
    assert seen.decays == [decay]
    assert sum(isinstance(part, _BatchNorm) for part in parts) == norms
    assert recorded(training, "training_set_val_loss").keys() == {5, 10}


def test_the_gap_is_training_minus_held_out_in_each_run():
    ends = {("none_p0_l0", 0): (1.0, 0.9), ("none_p0_l0", 1): (1.0, 0.8), ("before_p0_l0", 0): (math.nan, math.nan)}
    rows = [
        ("regularization", arm, seed, 10, "", name, value)
        for (arm, seed), values in ends.items()
        for name, value in zip(("training_set_val_loss", "val_loss"), values, strict=True)
    ]
    results = pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])
    whole = study(tiny_problem()).only("*_p0_l0")
    table = gaps(results, whole)
    assert table["value"].tolist()[:2] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert math.isnan(table["value"].iloc[2])
    assert set(table.columns) == {"arm", "seed", "norm", "dropout", "weight_decay", "value"}
    for figure in whole.figures:
        means = [line for ax in figure.draw(results, pd.DataFrame(), whole).axes for line in ax.get_lines()]
        drawn = [line.get_ydata()[0] for line in means if line.get_gid() == "mean"]
        assert drawn == [pytest.approx({"metric": 0.85, "gap": 0.15}[figure.name])]
