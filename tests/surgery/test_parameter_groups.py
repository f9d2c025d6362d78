"""Every trainable parameter in one of two groups, norms in the one without decay."""

import math

import pytest
import pytorch_lightning as pl
import torch
from cases import CASES
from tiny import TinyData, TinyNet
from torch import nn

from bn_lightning import insert_batch_norm, remove_batch_norm
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.surgery.parameter_groups import parameter_groups


def names_in(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


@pytest.mark.parametrize("decay_biases", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_trainable_parameter_is_in_one_group_in_the_models_order(case, decay_biases):
    model = case.make()
    insert_batch_norm(model, case.example())
    groups = parameter_groups(model, weight_decay=0.1, decay_biases=decay_biases)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed, others = names_in(model, groups)
    assert sorted(decayed + others) == sorted(trainable)
    assert decayed == [name for name in trainable if name in decayed]
    assert others == [name for name in trainable if name in others]
    spared = [name for name in trainable if "bn_lightning_norm" in name or (not decay_biases and "bias" in name)]
    assert others == spared


class RootMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)


def zoo():
    """A module of each kind that holds parameters of norms, and of those that do not."""
    return nn.ModuleDict(
        {
            "batch": nn.BatchNorm2d(4),
            "sync": nn.SyncBatchNorm(4),
            "instance": nn.InstanceNorm1d(4, affine=True),
            "layer": nn.LayerNorm(4),
            "group": nn.GroupNorm(2, 4),
            "rms": nn.RMSNorm(4),
            "own": RootMean(),
            "conv": nn.Conv1d(4, 4, 1),
            "prelu": nn.PReLU(),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "recurrent": nn.LSTM(4, 4),
            "unbiased": nn.Linear(4, 4, bias=False),
        }
    )


def test_hand_written_norms_of_every_kind_are_spared():
    model = zoo()
    decayed, others = names_in(model, parameter_groups(model, weight_decay=0.1))
    kinds = ("batch", "sync", "instance", "layer", "group", "rms")
    assert [name for name in others if name.startswith(kinds)] == others
    assert not [name for name in decayed if name.startswith(kinds)]
    assert len(others) == 11  # RMS norm has no shift


def test_biases_are_known_by_their_names():
    model = zoo()
    decayed, others = names_in(model, parameter_groups(model, weight_decay=0.1, decay_biases=False))
    biases = {"attention.in_proj_bias", "attention.bias_k", "attention.bias_v", "attention.out_proj.bias"}
    biases |= {"recurrent.bias_ih_l0", "recurrent.bias_hh_l0", "conv.bias", "own.inner.bias"}
    assert biases < set(others)
    assert "unbiased.weight" in decayed  # the module's name is not the parameter's
    assert {"prelu.weight", "recurrent.weight_ih_l0", "attention.in_proj_weight", "own.scale"} < set(decayed)


def test_other_classes_count_as_norms_by_their_own_parameters():
    model = zoo()
    decayed, others = names_in(model, parameter_groups(model, weight_decay=0.1, norm_types=(RootMean,)))
    assert "own.scale" in others
    assert {"own.inner.weight", "own.inner.bias"} < set(decayed)


def test_all_parameters_of_an_inserted_factory_are_spared():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    insert_batch_norm(model, (torch.randn(5, 3),), norm=lambda channels: RootMeanOf(channels))
    _, others = names_in(model, parameter_groups(model, weight_decay=0.1))
    assert len(others) == 3
    assert all(name.startswith("0.bn_lightning_norm.0.") for name in others)


class RootMeanOf(RootMean):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return self.inner(x) * self.scale


def test_frozen_parameters_are_left_out_and_come_back_with_the_biases_of_removed_norms():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    insert_batch_norm(model, (torch.randn(5, 3),))
    model[2].weight.requires_grad_(False)
    assert names_in(model, parameter_groups(model, weight_decay=0.1))[0] == ["0.weight", "2.bias"]
    remove_batch_norm(model)
    assert names_in(model, parameter_groups(model, weight_decay=0.1)) == [["0.weight", "0.bias", "2.bias"], []]


def test_tied_parameters_come_once_and_a_norms_use_of_one_spares_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].weight = model[0].weight
    model[1].bias = model[2].bias
    groups = parameter_groups(model, weight_decay=0.1)
    assert names_in(model, groups) == [["0.weight", "0.bias"], ["1.bias", "2.weight"]]


def test_a_step_decays_the_weights_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    insert_batch_norm(model, (torch.randn(5, 3),))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.1, decay_biases=False), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.9 if name in ("0.weight", "2.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


class Grouped(TinyNet):
    def configure_optimizers(self):
        return torch.optim.AdamW(parameter_groups(self, weight_decay=0.1), lr=0.01)


def test_norms_that_a_trainer_inserted_are_in_the_group_without_decay(tmp_path):
    module = Grouped()
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        callbacks=[BatchNormInsertion()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, TinyData())
    groups = trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert names_in(module, groups) == [
        ["net.0.weight", "net.2.weight", "net.2.bias"],
        ["net.0.bn_lightning_norm.0.weight", "net.0.bn_lightning_norm.0.bias"],
    ]
    assert (module.net[0].bn_lightning_norm[0].weight != 1).any()


@pytest.mark.parametrize("weight_decay", [-0.1, math.nan])
def test_a_decay_that_is_none(weight_decay):
    with pytest.raises(ValueError, match=f"weight_decay={weight_decay} would let the weights grow"):
        parameter_groups(nn.Linear(1, 1), weight_decay=weight_decay)


def test_nothing_to_optimize():
    with pytest.raises(ValueError, match=r"Linear has no trainable parameter among its 2,.*unfreeze"):
        parameter_groups(nn.Linear(1, 1).requires_grad_(False), weight_decay=0.1)
    with pytest.raises(ValueError, match="ReLU has no trainable parameter among its 0"):
        parameter_groups(nn.ReLU(), weight_decay=0.1)
