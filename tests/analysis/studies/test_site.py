import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from inserted import module
from tiny import TinyNet, tiny_problem

from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.residual_model import ResidualMLP
from bn_lightning.analysis.studies.site import SITES, last_recorded, study
from bn_lightning.callbacks import ActivationMonitor, BatchNormRecalibration
from bn_lightning.surgery.carried import plan_of

ON_SUMS = {"net.1", "net.2.act", "net.2.out", "net.3.act", "net.3.out"}
ON_BRANCHES = {"net.1", "net.2.act", "net.2.second", "net.3.act", "net.3.second"}


@pytest.mark.parametrize(
    ("arm", "sites"), [("sum", ON_SUMS), ("branch", ON_BRANCHES), ("both", ON_SUMS | ON_BRANCHES), ("none", set())]
)
def test_each_arm_normalises_where_it_says(arm, sites, monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    model = ResidualMLP(blocks=2, width=8)
    callbacks = [
        part
        for part in study(tiny_problem()).arm(arm).callbacks()
        if not isinstance(part, BatchNormRecalibration | ActivationMonitor)
    ]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, limit_val_batches=0, **quiet
    )
    trainer.fit(model, datamodule=DigitsData())
    plan = plan_of(model)
    inserted = set() if plan is None else {site.name for site in plan.inserted}
    assert inserted == sites
    norms = [part for path, part in model.named_modules() if "bn_lightning_norm." in path]
    assert len(norms) == len(sites)
    # Each of them meets its call.
    assert all(int(norm.num_batches_tracked) == 2 for norm in norms)


def test_without_additions_the_three_are_one():
    places = {}
    for arm in SITES:
        model = module(kind=TinyNet)
        model.example_input_array = torch.zeros(4, 3)
        for part in study(tiny_problem()).arm(arm).callbacks():
            if not isinstance(part, BatchNormRecalibration | ActivationMonitor):
                part.setup(pl.Trainer(callbacks=[part], logger=False, accelerator="cpu"), model, "fit")
        plan = plan_of(model)
        places[arm] = None if plan is None else [site.name for site in plan.inserted]
    assert places == {"none": None, "sum": ["net.1"], "branch": ["net.1"], "both": ["net.1"]}


def test_the_last_recording_of_every_run():
    rows = [("a", 0, "v", 1.0), ("a", 50, "v", 2.0), ("b", 20, "v", 3.0), ("b", 30, "w", 4.0)]
    table = pd.DataFrame(rows, columns=["arm", "step", "quantity", "value"]).assign(seed=0, layer="net.0")
    assert last_recorded(table, "v")["value"].tolist() == [2.0, 3.0]
