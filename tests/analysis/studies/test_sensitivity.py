import math

import pandas as pd
import pytest
import torch
from peek import peek
from tiny import tiny_problem

from bn_lightning.analysis.studies.sensitivity import NORMS, RATES, SCALES, default_problem, study
from bn_lightning.surgery.carried import plan_of

TINY = study(tiny_problem())


def test_every_rate_is_crossed_with_every_scale_and_norm():
    arms = study(default_problem()).arms
    found = {(arm.factors["norm"], arm.factors["scale"], arm.factors["rate"]) for arm in arms}
    assert found == {(norm, scale, rate) for norm in NORMS for scale in SCALES for rate in RATES}
    assert len(arms) == len(found) == 50


@pytest.mark.parametrize(("arm", "scale", "rate"), [("none_w0.1_x10", 0.1, 10), ("before_w10_x0.01", 10, 0.01)])
def test_weights_and_rate_are_multiplied(tmp_path, arm, scale, rate):
    plain, _ = peek(tiny_problem(), TINY.arm("none_w1_x1"), tmp_path / "plain")
    seen, _ = peek(tiny_problem(), TINY.arm(arm), tmp_path / "arm")
    assert seen.rates == [pytest.approx(0.1 * rate)]
    for name in ("net.0.weight", "net.2.weight"):
        torch.testing.assert_close(seen.starting[name], plain.starting[name] * scale)
    assert (plan_of(seen.module) is not None) == arm.startswith("before")


def test_the_figures_show_means_and_shares_of_a_known_table():
    problem = default_problem()
    whole = study(problem).only("*_w1_x1,*_w1_x10")
    ends = {
        "none_w1_x1": (0.9, 0.8),
        "none_w1_x10": (math.nan, 0.1),
        "before_w1_x1": (0.9, 1.0),
        "before_w1_x10": (0.5, 0.4),
    }
    rows = [
        ("sensitivity", arm, seed, step, "", "test_accuracy", 0.1 if step == 0 else value)
        for arm, values in ends.items()
        for seed, value in enumerate(values)
        for step in (0, 300)
    ]
    results = pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])
    drawn = {figure.name: figure.draw(results, pd.DataFrame(), whole) for figure in whole.figures}
    texts = {name: [[text.get_text() for text in ax.texts] for ax in figure.axes[:2]] for name, figure in drawn.items()}
    assert texts["metric"] == [["0.85", "0.10*"], ["0.95", "0.45"]]
    assert texts["learned"] == [["1.00", "0.00"], ["1.00", "0.50"]]
