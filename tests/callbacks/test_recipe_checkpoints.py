import importlib

import pytest
import pytorch_lightning as pl
import torch
from inserted import data, loader, module, norms_of, trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from recipe_cases import ByHand, Failing, Rates, Whole, layers, weights_of
from torch import nn

from bn_lightning.analysis.checkpoint_file import read_checkpoint
from bn_lightning.analysis.checkpoint_loading import CheckpointLoader
from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecipe
from bn_lightning.surgery.checkpoint import load_from_checkpoint
from bn_lightning.surgery.local_response_norm import RemovedLocalResponseNorm, remove_local_response_norm


class Saving(pl.Callback):
    def __init__(self, folder, *, weights_only=False) -> None:
        self.folder, self.weights_only = folder, weights_only

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"epoch={trainer.current_epoch}.ckpt", weights_only=self.weights_only)


def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(tmp_path):
    recipe = {"shuffle": False}  # Lightning does not save the random state
    whole, rates = module(kind=Whole), Rates()
    trainer(tmp_path, BatchNormRecipe(**recipe), rates, Saving(tmp_path), max_epochs=4).fit(whole, loader())
    resumed, again, second = module(5, kind=Whole), Rates(), BatchNormRecipe(**recipe)
    trainer(tmp_path, second, again, max_epochs=4).fit(resumed, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.seen == rates.seen[8:]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(rates.seen[8][0], 0.05 * 0.98 ** (6 * 8))
    assert second.report.without_effect == ()


def test_a_run_without_recipe_takes_it_up_where_it_is_resumed(tmp_path):
    trainer(tmp_path, Saving(tmp_path), max_epochs=1).fit(module(kind=Whole), loader())
    model, rates = module(kind=Whole), Rates()
    trainer(tmp_path, BatchNormRecipe(), rates, max_epochs=2).fit(model, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    expected = [0.05 * 0.98 ** (4 + 6 * step) for step in range(4)]
    torch.testing.assert_close([first for first, _ in rates.seen], expected)
    assert type(model.net[2][1]) is RemovedLocalResponseNorm


def test_another_recipe_is_refused_on_a_resume(tmp_path):
    fit = trainer(tmp_path, BatchNormRecipe(), Saving(tmp_path), max_epochs=1)
    fit.fit(module(kind=Whole), loader())
    message = r"trained with BatchNormRecipe\(learning_rate=5.0, .* asks for learning_rate=30.0"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, BatchNormRecipe(learning_rate=30.0)).fit(
            module(kind=Whole), loader(), ckpt_path=tmp_path / "epoch=0.ckpt"
        )


@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_say_that_local_response_norms_are_gone(tmp_path, weights_only):
    model = module(kind=Whole)
    saver = Saving(tmp_path, weights_only=weights_only)
    fit = trainer(tmp_path, BatchNormRecipe(), saver, max_epochs=1)
    fit.fit(model, loader())
    path, x = tmp_path / "epoch=0.ckpt", data()[:8][0]
    expected = model.eval()(x)
    fresh = module(3, kind=Whole)
    trainer(tmp_path, BatchNormRecipe()).test(fresh, loader(), ckpt_path=path, verbose=False)
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "net.2.1.bn_lightning_removed"'):
        Whole.load_from_checkpoint(path, weights_only=True)
    by_hand = module(3, kind=Whole)
    remove_local_response_norm(by_hand)
    by_hand.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(by_hand.eval()(x), expected, rtol=0, atol=0)


# Lightning's advice to name the recipe too, which this Trainer is meant to do without.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("insertion", [True, False])
def test_whatever_reads_checkpoints_with_norms_removes_local_response_norms_too(tmp_path, insertion):
    model = module(kind=Whole)
    callbacks = [BatchNormInsertion()] * insertion
    trainer(tmp_path, *callbacks, BatchNormRecipe(), Saving(tmp_path), max_epochs=1).fit(model, loader())
    path, x = tmp_path / "epoch=0.ckpt", data()[:8][0]
    expected = model.eval()(x)
    loaded, for_the_command, resumed = load_from_checkpoint(Whole, path), module(3, kind=Whole), module(3, kind=Whole)
    CheckpointLoader(read_checkpoint(path), path)(for_the_command)
    trainer(tmp_path, *callbacks or [BatchNormRecipe()]).test(resumed, loader(), ckpt_path=path, verbose=False)
    for other in (loaded, for_the_command, resumed):
        torch.testing.assert_close(other.eval()(x), expected, rtol=0, atol=0)
        assert len(norms_of(other)) == insertion


def test_testing_leaves_a_network_with_local_response_norm_as_it_is(tmp_path):
    model = module(kind=Whole)
    trainer(tmp_path, BatchNormRecipe()).test(model, loader(), verbose=False)
    assert type(model.net[2][1]) is nn.LocalResponseNorm
    assert not model._load_state_dict_pre_hooks


class FailsAtStart(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        raise OSError("no start")


@pytest.mark.parametrize(
    ("failing", "kind"), [(FailsAtStart, nn.LocalResponseNorm), (Failing, RemovedLocalResponseNorm)]
)
def test_local_response_norms_stay_removed_once_trained_without(tmp_path, failing, kind):
    model = module(kind=Whole)
    with pytest.raises(OSError, match=r"no start|on fire"):
        trainer(tmp_path, BatchNormRecipe(), failing()).fit(model, loader())
    assert type(model.net[2][1]) is kind


def test_layers_that_are_built_late_are_reached_on_a_resume_too(tmp_path):
    class Late(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = layers()

    path = tmp_path / "epoch=0.ckpt"
    callbacks = [BatchNormInsertion(), BatchNormRecipe(shuffle=False)]
    fit = trainer(tmp_path, *callbacks, Saving(tmp_path), max_epochs=1)
    fit.fit(module(kind=Late), loader())
    model = module(kind=Late)
    trainer(tmp_path, *callbacks).fit(model, loader(), ckpt_path=path)
    assert type(model.net[2][1]) is RemovedLocalResponseNorm
    assert len(norms_of(model)) == 1


def test_averaged_weights_are_those_of_the_network_without(tmp_path):
    averaging = importlib.import_module("pytorch_lightning.callbacks.weight_averaging")
    models = {}
    for kind, recipe in ((Whole, [BatchNormRecipe(shuffle=False)]), (ByHand, [])):
        models[kind] = module(kind=kind)
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path, *recipe, averaging.EMAWeightAveraging(decay=0.9)).fit(models[kind], loader())
    torch.testing.assert_close(weights_of(models[Whole]), models[ByHand].state_dict())
