import pickle

import pytest
import torch
from inserted import BuiltInConfigureModel, BuiltInSetup, Lit, loader, module, norms_of, trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from bn_lightning.analysis.model_changes.model_change import ModelChange
from bn_lightning.analysis.model_changes.swap_activations import SwapActivations
from bn_lightning.callbacks import BatchNormInsertion


class Halving(ModelChange):
    def change(self, trainer, module):
        with torch.no_grad():
            module.net[0].weight.mul_(0.5)


@pytest.mark.parametrize("kind", [Lit, BuiltInSetup, BuiltInConfigureModel])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_change_comes_before_the_norms_wherever_layers_are_built(tmp_path, kind, placement):
    model = module(kind=kind)
    fit = trainer(tmp_path, SwapActivations("prelu"), BatchNormInsertion(placement=placement), max_steps=1)
    fit.fit(model, loader())
    swapped = [part for part in model.modules() if isinstance(part, nn.PReLU)]
    assert len(swapped) == len(norms_of(model)) == (2 if kind is Lit else 1)
    held = {id(parameter) for parameter in fit.optimizers[0].param_groups[0]["params"]}
    assert {id(part.weight) for part in swapped} <= held
    assert not {"setup", "configure_model"} & set(vars(model))


def test_outside_fit_nothing_is_changed(tmp_path):
    model = module()
    before = model.net[0].weight.detach().clone()
    trainer(tmp_path, Halving()).validate(model, loader(), verbose=False)
    torch.testing.assert_close(model.net[0].weight, before, rtol=0, atol=0)
    trainer(tmp_path, Halving(), max_steps=0).fit(model, loader())
    torch.testing.assert_close(model.net[0].weight, before / 2, rtol=0, atol=0)


def test_a_parameter_that_no_optimizer_holds_is_refused(tmp_path):
    class Early(Lit):
        def __init__(self):
            super().__init__()
            self.early = list(self.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.early, lr=0.1)

    with pytest.raises(
        MisconfigurationException, match=r"No optimizer holds net\.1\.weight, net\.3\.weight, which Swap"
    ):
        trainer(tmp_path, SwapActivations("prelu"), max_steps=1).fit(module(kind=Early), loader())


def test_a_failed_set_up_leaves_no_hook_and_a_finished_one_pickles(tmp_path):
    class Failing(BuiltInSetup):
        def setup(self, stage):
            raise OSError("no disk")

    model = module(kind=Failing)
    with pytest.raises(OSError, match="no disk"):
        trainer(tmp_path, Halving(), max_steps=1).fit(model, loader())
    assert "setup" not in vars(model)
    change = SwapActivations("gelu")
    trainer(tmp_path, change, max_steps=1).fit(module(), loader())
    assert pickle.loads(pickle.dumps(change)).activation == "gelu"


def test_a_change_says_what_it_is(tmp_path):
    with pytest.raises(NotImplementedError, match="ModelChange has to say in `change`"):
        trainer(tmp_path, ModelChange(), max_steps=1).fit(module(), loader())
