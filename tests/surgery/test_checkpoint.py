import copy
import pickle

import pytest
import torch
from cases import FunctionalMLP, ResidualNet

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import (
    forget_plan_in_checkpoints,
    keep_plan_in_checkpoints,
    match_plan,
    write_plan,
)
from bn_lightning.surgery.insert import insert_batch_norm


class Module(FunctionalMLP):
    """The two checkpoint hooks of a LightningModule."""

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["saved"] = True

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.loaded = checkpoint["saved"]


EXAMPLE = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),)


def test_a_checkpoint_rebuilds_a_fresh_model_before_its_weights_are_loaded(tmp_path):
    model = Module()
    insert_batch_norm(model, EXAMPLE)
    keep_plan_in_checkpoints(model)
    model(*EXAMPLE)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "model.ckpt")
    loaded = torch.load(tmp_path / "model.ckpt", weights_only=True)
    fresh = Module()
    keep_plan_in_checkpoints(fresh)
    fresh.on_load_checkpoint(loaded)
    fresh.load_state_dict(loaded["state_dict"])
    assert fresh.loaded
    assert torch.equal(fresh.eval()(*EXAMPLE), model.eval()(*EXAMPLE))


def test_the_hooks_follow_a_copy_and_a_pickle_and_can_be_taken_out():
    model = Module()
    insert_batch_norm(model, EXAMPLE)
    keep_plan_in_checkpoints(model)
    keep_plan_in_checkpoints(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.on_save_checkpoint.module is twin
        checkpoint: dict = {}
        twin.on_save_checkpoint(checkpoint)
        assert checkpoint["saved"]
        assert checkpoint["bn_lightning"]["plan"] == plan_of(model).to_dict()
    forget_plan_in_checkpoints(model)
    assert not {"on_save_checkpoint", "on_load_checkpoint"} & set(vars(model))


def test_a_model_without_norms_writes_nothing():
    checkpoint: dict = {}
    write_plan(FunctionalMLP(), checkpoint)
    assert checkpoint == {}
    match_plan(FunctionalMLP(), checkpoint)


def test_norms_on_one_side_only_or_others():
    plain, normed = FunctionalMLP(), FunctionalMLP()
    insert_batch_norm(normed, EXAMPLE)
    with pytest.raises(PlanMismatchError, match="written without inserted norms, and the model carries 2"):
        match_plan(normed, {"state_dict": plain.state_dict()})
    checkpoint: dict = {}
    write_plan(normed, checkpoint)
    behind = FunctionalMLP()
    insert_batch_norm(behind, EXAMPLE, placement="after")
    with pytest.raises(PlanMismatchError, match=r"\(batch, before: 2 sites\) are not those of the model"):
        match_plan(behind, checkpoint)
    fewer = FunctionalMLP()
    insert_batch_norm(fewer, EXAMPLE, exclude=["tanh*"])
    with pytest.raises(PlanMismatchError, match="they differ in sites tanh_0"):
        match_plan(fewer, checkpoint)
    with pytest.raises(PlanMismatchError, match="ResidualNet does not have: first"):
        match_plan(ResidualNet(), checkpoint)


def test_another_batch_size_is_the_same_structure():
    written, present = FunctionalMLP(), FunctionalMLP()
    insert_batch_norm(written, EXAMPLE)
    insert_batch_norm(present, (torch.randn(3, 5),))
    checkpoint: dict = {}
    write_plan(written, checkpoint)
    match_plan(present, checkpoint)
