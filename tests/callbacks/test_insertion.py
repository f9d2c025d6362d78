import importlib

import pytest
import pytorch_lightning as pl
import torch
from inserted import BuiltInConfigureModel, BuiltInSetup, Lit, data, loader, module, norms_of, trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import InsertionWarning, NoEffectWarning, NoSiteError
from bn_lightning.surgery.insert import insert_batch_norm


@pytest.mark.parametrize("placement", ["before", "after"])
def test_one_line_gives_a_script_batch_norm_that_is_trained(tmp_path, placement):
    model = module()
    fit = trainer(tmp_path, BatchNormInsertion(placement=placement))
    fit.fit(model, loader())
    norms = norms_of(model)
    assert [int(norm.num_batches_tracked) for norm in norms] == [8, 8]
    held = {id(parameter) for parameter in fit.optimizers[0].param_groups[0]["params"]}
    assert all(id(parameter) in held for norm in norms for parameter in norm.parameters())
    assert all((norm.weight != 1).any() for norm in norms)


def test_training_equals_that_of_a_model_with_the_norms_put_in_by_hand(tmp_path):
    by_callback, by_hand = module(), module()
    insert_batch_norm(by_hand, (data()[:8][0],))
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, BatchNormInsertion()).fit(by_callback, loader(shuffle=True))
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path).fit(by_hand, loader(shuffle=True))
    torch.testing.assert_close(by_callback.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [BuiltInSetup, BuiltInConfigureModel])
def test_modules_that_build_their_layers_late(tmp_path, kind):
    model = module(kind=kind)
    fit = trainer(tmp_path, BatchNormInsertion())
    fit.fit(model, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [8]
    assert "configure_model" not in vars(model)
    held = {id(parameter) for parameter in fit.optimizers[0].param_groups[0]["params"]}
    assert id(norms_of(model)[0].weight) in held


def test_a_second_fit_keeps_the_norms_and_other_settings_are_refused(tmp_path):
    model = module()
    trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    norms = norms_of(model)
    trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert norms_of(model) == norms
    with pytest.raises(MisconfigurationException, match=r"already carries norms \(batch, before\)"):
        trainer(tmp_path, BatchNormInsertion(placement="after")).fit(model, loader())


def test_a_model_without_nonlinearity(tmp_path):
    class Straight(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3))

    with pytest.raises(NoSiteError, match=r"No nonlinearity was called when Straight\.training_step ran") as caught:
        trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Straight), loader())
    assert any("Set example_input_array" in note for note in caught.value.__notes__)


def test_no_training_data_and_no_checkpoint_to_validate_with(tmp_path):
    with pytest.warns(NoEffectWarning, match="outside fit there is no training batch to trace Lit with"):
        trainer(tmp_path, BatchNormInsertion()).validate(module(), loader(), verbose=False)


def test_training_on_batches_of_one_sample_names_the_site(tmp_path):
    with pytest.warns(InsertionWarning, match=r"BatchNorm1d at 'net\.[13]' received 1 value per channel"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), DataLoader(data(), batch_size=1))


def test_the_other_namespace(tmp_path):
    lightning = importlib.import_module("lightning.pytorch")

    class Other(lightning.LightningModule):
        forward, training_step = Lit.forward, Lit.training_step
        configure_optimizers = Lit.configure_optimizers

        def __init__(self) -> None:
            lightning.LightningModule.__init__(self)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    model = Other()
    fit = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[BatchNormInsertion()],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )
    fit.fit(model, loader())
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [4]
    other = importlib.import_module("lightning.pytorch.utilities.exceptions")
    with pytest.raises(other.MisconfigurationException, match="hold no batch to trace with"):
        fit.fit(Other(), [])


def test_a_setup_that_fails_leaves_no_patch(tmp_path):
    class Failing(BuiltInSetup):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no layers today")

    model = module(kind=Failing)
    with pytest.raises(RuntimeError, match="no layers today"):
        trainer(tmp_path, BatchNormInsertion()).fit(model, loader())
    assert "configure_model" not in vars(model)
