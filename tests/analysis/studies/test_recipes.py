import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from tiny import TinyData, TinyNet
from torch import nn

from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.inception_model import Inception
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.studies.recipes import ARMS, TARGET, default_problem, study
from bn_lightning.analysis.study import Budget

NONLINEARITIES = 25  # 2 of the stem, 7 in each of three modules, 2 of the auxiliary head


class Seen(pl.Callback):
    """What the first batch is trained with: dropout and rates are given back and scheduled afterwards."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.module = pl_module
        (self.group,) = trainer.optimizers[0].param_groups
        self.rate, self.decay = self.group["lr"], self.group["weight_decay"]
        self.dropout = [part.p for part in pl_module.modules() if isinstance(part, nn.Dropout)]
        self.scheduler = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None


def first_step(name, tmp_path, module=None, data=None):
    torch.manual_seed(0)
    callbacks = study(default_problem()).arm(name).callbacks()
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[*callbacks, seen := Seen()],
        limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module or Inception(width=1, lr=0.02), datamodule=data or DigitsData())
    return seen, callbacks


def count(module, *kinds):
    return sum(isinstance(part, kinds) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "norms", "rate", "recipe"),
    [
        ("plain", 0, 0.02, False),
        ("plain_x5", 0, 0.1, False),
        ("baseline", NONLINEARITIES, 0.02, False),
        ("x5", NONLINEARITIES, 0.1, True),
        ("x30", NONLINEARITIES, 0.6, True),
        ("x5_sigmoid", NONLINEARITIES, 0.1, True),
    ],
)
def test_every_arm_is_what_its_name_says(tmp_path, name, norms, rate, recipe):
    seen, _ = first_step(name, tmp_path)
    assert count(seen.module, nn.BatchNorm1d, nn.BatchNorm2d) == norms
    assert seen.rate == pytest.approx(rate)
    assert seen.decay == pytest.approx(1e-4 if recipe else 5e-4)
    assert seen.dropout == ([0, 0] if recipe else [0.4, 0.7])
    marks = sum(key.endswith("bn_lightning_removed") for key in seen.module.state_dict())
    assert marks == (2 if recipe else 0)
    sigmoids = NONLINEARITIES if name == "x5_sigmoid" else 0
    assert (count(seen.module, nn.Sigmoid), count(seen.module, nn.ReLU)) == (sigmoids, NONLINEARITIES - sigmoids)
    before = seen.group["lr"]
    seen.scheduler.step()
    # After the fit schedules pass as they did.
    assert seen.group["lr"] == pytest.approx(before * 0.96 ** (1 / 8))


def test_the_fully_connected_layer_of_the_auxiliary_head_is_normalised(tmp_path):
    seen, _ = first_step("baseline", tmp_path)
    (linear,) = [part for part in seen.module.net.auxiliary if isinstance(part, nn.Linear) and part.out_features != 10]
    (norm,) = [part for part in linear.modules() if isinstance(part, nn.BatchNorm1d)]
    assert norm.num_features == linear.out_features


def test_the_schedule_passes_six_times_as_fast(tmp_path):
    _, callbacks = first_step("x5", tmp_path)
    (recipe,) = [callback for callback in callbacks if hasattr(callback, "report")]
    table = recipe.report.table().set_index("item")
    assert table.loc["decay_faster", "after"] == "6 steps at a time"


def test_what_the_recipe_changed_is_in_the_results(tmp_path):
    problem = dataclasses.replace(default_problem(), budget=Budget(max_steps=2, eval_every=2))
    whole = study(problem)
    few = dataclasses.replace(whole, arms=tuple(arm for arm in whole.arms if arm.name in ("plain", "x5")))
    run = execute(few, seeds=1, out=tmp_path, progress=False)
    assert run.failures == ()
    rows = run.results[run.results["quantity"].str.startswith("recipe_")]
    assert set(rows["arm"]) == {"x5"}
    assert rows.set_index("quantity")["value"].to_dict() == {
        "recipe_learning_rate": 1,
        "recipe_remove_dropout": 2,
        "recipe_divide_weight_decay": 1,
        "recipe_decay_faster": 1,
        "recipe_remove_local_response_norm": 2,
        "recipe_shuffle": 0,  # the digits are shuffled anyway
    }


def test_a_module_that_has_little_to_remove_is_trained_without_a_warning(tmp_path):
    seen, callbacks = first_step("x5", tmp_path, TinyNet(lr=0.1), TinyData())
    assert seen.rate == pytest.approx(0.5)
    table = callbacks[-1].table().set_index("quantity")["value"]
    assert table["recipe_learning_rate"] == 1
    assert table.drop("recipe_learning_rate").eq(0).all()


def test_arms_and_target_are_those_of_the_paper_and_the_pilots(monkeypatch, tmp_path):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    made = study(default_problem())
    assert [arm.name for arm in made.arms] == list(ARMS)
    assert (made.reference, made.problem.target) == ("plain", TARGET)
    # The target is of the embedded digits; MNIST has none yet.
    assert default_problem(data_dir=tmp_path).target is None
    assert "steps_to_target" not in [figure.name for figure in study(default_problem(data_dir=tmp_path)).figures]
