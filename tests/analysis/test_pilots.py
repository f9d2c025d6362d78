import math

import pandas as pd
import pytest
import torch
from tiny import Failing, TinyNet, tiny_problem, tiny_study

from bn_lightning.analysis.pilots import best_metric, pilot_target
from bn_lightning.analysis.results import load_results
from bn_lightning.analysis.runner import CellsFailedWarning
from bn_lightning.analysis.study import Arm
from bn_lightning.errors import UnknownNameError


class NeverFinite(TinyNet):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(math.nan))


def results(**curves):
    rows = [
        ("s", arm, seed, step, "", "val_loss", value)
        for arm, seeds in curves.items()
        for seed, values in enumerate(seeds)
        for step, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])


@pytest.mark.parametrize(("mode", "best"), [("min", [1.0, 2.0]), ("max", [3.0, 4.0])])
def test_the_best_evaluation_counts_also_before_a_divergence(mode, best):
    table = results(a=[[3.0, 1.0, math.nan], [4.0, 2.0, math.inf]], b=[[math.nan], [math.nan]])
    study = tiny_study(Arm(name="a"), Arm(name="b"), problem=tiny_problem(mode=mode))
    found = best_metric(table, study)
    assert found.loc["a"].tolist() == best
    assert found.loc["b"].isna().all()


def test_the_target_is_what_every_pilot_reached(tmp_path):
    study = tiny_study()
    target = pilot_target(study, arm="quick", seeds=(7, 8, 9), out=tmp_path, progress=False)
    table = load_results(tmp_path)
    assert set(table["arm"]) == {"quick"}
    losses = table[table["quantity"] == "val_loss"]
    # The metric is a loss: the worst of the best is the largest of the smallest.
    assert target == max(losses.loc[losses["seed"] == seed, "value"].min() for seed in (7, 8, 9))


def test_the_reference_is_the_arm_by_default_and_others_are_named(tmp_path):
    pilot_target(tiny_study(), out=tmp_path / "pilots", progress=False)
    assert sorted(path.name for path in (tmp_path / "pilots" / "slow").iterdir()) == ["seed_100", "seed_101"]
    with pytest.raises(UnknownNameError, match=r"no arm of study 'rates' 'quik'. Did you mean 'quick'"):
        pilot_target(tiny_study(), arm="quik", out=tmp_path / "pilots")


def test_pilots_that_fail_or_diverge_fix_no_target(tmp_path):
    failing = tiny_study(Arm(name="a", callbacks=lambda: [Failing()]))
    with (
        pytest.warns(CellsFailedWarning, match="1 of 1 cells failed"),
        pytest.raises(RuntimeError, match=r"1 of the pilot runs failed.*the disk is on fire"),
    ):
        pilot_target(failing, seeds=(1,), out=tmp_path / "failing", progress=False)
    never = tiny_study(problem=tiny_problem(module=NeverFinite))
    with pytest.raises(RuntimeError, match="val_loss of arm 'slow' was not finite in 2 of 2 pilot runs"):
        pilot_target(never, out=tmp_path / "never", progress=False)
