import math

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from inserted import module, norms_of
from tiny import TinyData, TinyNet, tiny_problem
from torch import nn

from bn_lightning.analysis.catalog import find_study
from bn_lightning.analysis.model_changes.swap_activations import ACTIVATIONS
from bn_lightning.analysis.studies._crossed import PLACES, final_by_pair, gains
from bn_lightning.analysis.studies.placement_activation import CROSS
from bn_lightning.callbacks import BatchNormRecalibration

CROSSED = ("placement_activation", "placement_init", "placement_dropout")


def started(study, arm):
    """A tiny module as an arm leaves it before the first step."""
    model = module(kind=TinyNet)
    callbacks = [part for part in study.arm(arm).callbacks() if not isinstance(part, BatchNormRecalibration)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=0, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, limit_val_batches=0, **quiet
    )
    trainer.fit(model, datamodule=TinyData())
    return model


@pytest.mark.parametrize(("name", "levels"), [*zip(CROSSED, (11, 4, 3), strict=True)])
def test_every_level_is_crossed_with_every_place(name, levels):
    study = find_study(name, problem=tiny_problem())
    (factor,) = set(study.arms[0].factors) - {"placement"}
    pairs = {(arm.factors[factor], arm.factors["placement"]) for arm in study.arms}
    assert len(pairs) == len(study.arms) == 3 * levels
    assert {place for _, place in pairs} == set(PLACES)
    assert study.arm(study.reference).factors["placement"] == "none"


def test_the_levels_are_all_nonlinearities_there_are():
    assert [level.value for level in CROSS.levels] == list(ACTIVATIONS)


@pytest.mark.parametrize(("arm", "kind", "channels"), [("elu_none", nn.ELU, []), ("selu_after", nn.SELU, [5])])
def test_an_arm_swaps_and_inserts(arm, kind, channels):
    model = started(find_study("placement_activation", problem=tiny_problem()), arm)
    assert type(model.net[1]) is kind
    assert [norm.num_features for norm in norms_of(model)] == channels


@pytest.mark.parametrize(("place", "channels"), [("before", [10]), ("after", [5])])
def test_a_maxout_is_told_where_the_norm_goes(place, channels):
    model = started(find_study("placement_activation", problem=tiny_problem()), f"maxout_{place}")
    assert [norm.num_features for norm in norms_of(model)] == channels


def test_the_same_weights_in_every_place():
    study = find_study("placement_init", problem=tiny_problem())
    weights = []
    for place in PLACES:
        weights.append(started(study, f"lsuv_{place}").net[0].weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=0)


@pytest.mark.parametrize(("arm", "dropped"), [("p0_after", []), ("p0.2_none", [0.2]), ("p0.5_before", [0.5])])
def test_dropout_of_the_arm(arm, dropped):
    model = started(find_study("placement_dropout", problem=tiny_problem()), arm)
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)] == dropped


def synthetic(study):
    """Seed s of level l: .1 l + .01 s plain, .02 more with the norm before, diverged with it after in seed 1."""
    rows = []
    for number, level in enumerate(CROSS.levels):
        for seed in range(2):
            for place, more in {"none": 0.0, "before": 0.02, "after": math.nan if seed else 0.05}.items():
                value = 0.1 * number + 0.01 * seed + more
                rows.append((study.name, f"{level.name}_{place}", seed, 10, "", "val_loss", value))
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])


def test_gains_are_differences_to_the_same_level_and_seed():
    study = find_study("placement_activation", problem=tiny_problem())
    values = final_by_pair(synthetic(study), study, CROSS)
    assert len(values) == 11 * 3 * 2
    found = gains(values).set_index(["series", "seed"])["value"]
    assert found["before"].tolist() == pytest.approx([0.02] * 22)
    assert found.loc[[("after", 0)]].tolist() == pytest.approx([0.05] * 11)
    assert found.loc[[("after", 1)]].isna().all()


def test_figures_show_some_arms_alone_and_none_without_a_pair():
    study = find_study("placement_activation", problem=tiny_problem())
    results = synthetic(study)
    some = study.only("relu_none,relu_before,elu_none")
    of_some = results[results["arm"].isin([arm.name for arm in some.arms])]
    metric, gain = (figure.draw(of_some, pd.DataFrame(), some) for figure in some.figures)
    assert [tick.get_text() for tick in metric.axes[0].get_yticklabels()] == ["ReLU", "ELU"]
    assert [tick.get_text() for tick in gain.axes[0].get_yticklabels()] == ["ReLU"]
    alone = gain_of(results[results["arm"] == "relu_none"], study.only("relu_none"))
    assert alone.texts[0].get_text().startswith("No pair of runs")


def gain_of(results, study):
    return study.figures[1].draw(results, pd.DataFrame(), study)
