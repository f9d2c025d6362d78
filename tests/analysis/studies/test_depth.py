import dataclasses

import pytest
from peek import peek
from tiny import TinyNet, tiny_problem
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.analysis.studies.depth import ACTIVATIONS, DEPTHS, NORMS, RATES, default_problem, study
from bn_lightning.analysis.study import Budget


def test_depth_and_activation_are_crossed_where_the_module_takes_them():
    arms = study(default_problem()).arms
    found = {tuple(arm.factors.values()) for arm in arms}
    assert found == {(n, a, d, r) for n in NORMS for a in ACTIVATIONS for d in DEPTHS for r in RATES}
    assert len(arms) == 64


def test_a_module_without_those_options_is_trained_as_it_is_at_every_rate():
    arms = study(tiny_problem()).arms
    assert {tuple(arm.factors.values()) for arm in arms} == {(n, "own", "own", r) for n in NORMS for r in RATES}
    assert all(not arm.options for arm in arms)


def test_a_module_with_depth_alone_keeps_its_nonlinearity():
    def deep(depth=1):
        return TinyNet()

    arms = study(tiny_problem(module=deep)).arms
    assert {arm.factors["activation"] for arm in arms} == {"own"}
    assert {arm.factors["depth"] for arm in arms} == set(DEPTHS)


@pytest.mark.parametrize(("arm", "kind"), [("before_relu_d15_x10", nn.ReLU), ("none_sigmoid_d7_x0.1", nn.Sigmoid)])
def test_an_arm_has_the_depth_the_nonlinearity_and_the_rate_it_says(tmp_path, monkeypatch, arm, kind):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    problem = dataclasses.replace(default_problem(), budget=Budget(max_steps=1, eval_every=1))
    chosen = study(problem).arm(arm)
    seen, _ = peek(problem, chosen, tmp_path)
    depth = chosen.factors["depth"]
    parts = list(seen.module.modules())
    assert sum(isinstance(part, kind) for part in parts) == depth
    assert sum(isinstance(part, nn.Linear) for part in parts) == depth + 1
    assert sum(isinstance(part, _BatchNorm) for part in parts) == (depth if arm.startswith("before") else 0)
    assert seen.rates == [pytest.approx(0.1 * chosen.factors["rate"])]
