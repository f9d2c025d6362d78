import copy
import importlib
import logging
import pickle
from dataclasses import FrozenInstanceError

import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, data, loader, module, norms_of, trainer
from pytorch_lightning.callbacks.lr_finder import LearningRateFinder
from recipe_cases import ByHand, Rates, Whole, layers, only, weights_of

from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecipe
from bn_lightning.errors import NoEffectWarning


def test_training_equals_that_of_a_module_with_the_recipe_written_into_it(tmp_path):
    by_recipe, by_hand = module(kind=Whole), module(kind=ByHand)
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, BatchNormRecipe()).fit(by_recipe, loader())
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path).fit(by_hand, loader(shuffle=True))
    torch.testing.assert_close(weights_of(by_recipe), by_hand.state_dict())
    x = data()[:8][0]
    torch.testing.assert_close(by_recipe.eval()(x), by_hand.eval()(x))


def test_says_what_it_changed(tmp_path, caplog):
    recipe, model = (
        BatchNormRecipe(learning_rate=30.0, reduce_augmentation=lambda loaders: "nothing left"),
        module(kind=Whole),
    )
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, recipe).fit(model, loader())
    table = recipe.report.table()
    assert [tuple(row) for row in table.drop(columns="left").itertuples(index=False)][1:] == [
        ("shuffle", "training loader 0", "SequentialSampler", "RandomSampler"),
        ("remove_dropout", "net.3", "p=0.4", "p=0"),
        ("remove_local_response_norm", "net.2.1", "acts", "passes its input on"),
        ("learning_rate", "rate", "0.01", "0.3"),
        ("divide_weight_decay", "optimizer 0 (SGD), group 0", "0.5", "0.1"),
        ("decay_faster", "ExponentialLR 0", "1 step at a time", "6 steps at a time"),
    ]
    assert table.loc[0, ["item", "name", "after"]].tolist() == ["reduce_augmentation", "DataLoader", "nothing left"]
    assert not table["left"].any()
    assert recipe.report.without_effect == ()
    messages = [record.getMessage() for record in caplog.records if "BatchNormRecipe" in record.getMessage()]
    assert len(messages) == 1
    assert "  remove_dropout: net.3: p=0.4 → p=0\n" in messages[0]
    with pytest.raises(FrozenInstanceError, match="changes"):
        recipe.report.changes = ()


def test_a_recipe_that_is_switched_off_changes_nothing(tmp_path):
    with_it, without = module(kind=Whole), module(kind=Whole)
    recipe = only()
    for model, callbacks in ((with_it, [recipe]), (without, [])):
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path, *callbacks).fit(model, loader())
    torch.testing.assert_close(with_it.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert recipe.report.changes == recipe.report.without_effect == ()


def test_module_and_callback_pickle_and_copy_while_training(tmp_path):
    class Copies(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                assert not {"training_step", "train_dataloader"} & set(vars(copy.deepcopy(pl_module)))

    class Loads(Whole):
        def train_dataloader(self):
            return loader()

    model, recipe = module(kind=Loads), BatchNormRecipe()
    trainer(tmp_path, recipe, Copies()).fit(model)
    assert pickle.loads(pickle.dumps(recipe)).report == recipe.report


def test_items_that_find_nothing_are_named_with_the_way_out(tmp_path):
    class Plain(Lit):
        def configure_optimizers(self):
            return None

    recipe = BatchNormRecipe()
    message = (
        "nothing to change for learning_rate, remove_dropout, divide_weight_decay, decay_faster, "
        "remove_local_response_norm. Where that is as it should be, switch it off: learning_rate=None, "
        "remove_dropout=False, divide_weight_decay=None, decay_faster=None, remove_local_response_norm=False"
    )
    with (
        pytest.warns(NoEffectWarning, match=message),
        pytest.warns(UserWarning, match="this fit will run with no optimizer"),
    ):
        trainer(tmp_path, recipe).fit(module(kind=Plain), loader())
    assert recipe.report.table()["item"].tolist() == ["shuffle"]


@pytest.mark.parametrize("insertion_first", [True, False])
def test_beside_insertion_in_either_order(tmp_path, insertion_first):
    callbacks = [BatchNormInsertion(), BatchNormRecipe()]
    model, by_hand = module(kind=Whole), module(kind=ByHand)
    for one, chosen in ((model, callbacks if insertion_first else callbacks[::-1]), (by_hand, [BatchNormInsertion()])):
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path, *chosen).fit(one, loader(shuffle=one is by_hand))
    assert len(norms_of(model)) == len(norms_of(by_hand)) == 1
    torch.testing.assert_close(weights_of(model), by_hand.state_dict())


def test_a_second_fit_changes_its_new_optimizers_once(tmp_path):
    model, rates, recipe = module(kind=Whole), Rates(), BatchNormRecipe(decay_faster=None)
    fit = trainer(tmp_path, recipe, rates, max_epochs=1)
    fit.fit(model, loader())
    fit.fit_loop.max_epochs = 2
    fit.fit(model, loader())
    torch.testing.assert_close([first for first, _ in rates.seen], [0.05 * 0.98**step for step in range(4)] * 2)
    assert "remove_local_response_norm" not in recipe.report.without_effect


def test_after_a_learning_rate_finder(tmp_path):
    class Found(Whole):
        lr = 0.01

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr, weight_decay=0.5)

    model, rates = module(kind=Found), Rates()
    finder = LearningRateFinder(num_training_steps=40)
    trainer(tmp_path, finder, only(learning_rate=5.0), rates, max_epochs=12).fit(model, loader())
    torch.testing.assert_close(rates.seen, [[5 * model.lr]] * 48)
    assert model.lr != 0.01


def test_the_other_namespace(tmp_path):
    lightning = importlib.import_module("lightning.pytorch")

    class Other(lightning.LightningModule):
        forward, training_step = Lit.forward, Lit.training_step
        configure_optimizers = Whole.configure_optimizers

        def __init__(self) -> None:
            lightning.LightningModule.__init__(self)
            self.net = layers()

    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options |= {"accelerator": "cpu", "max_epochs": 2, "default_root_dir": tmp_path, "logger": False}
    model, by_hand = module(kind=Other), module(kind=ByHand)
    by_hand.load_state_dict(model.state_dict())
    pl.seed_everything(1, verbose=False)
    lightning.Trainer(callbacks=[BatchNormRecipe()], **options).fit(model, loader())
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path).fit(by_hand, loader(shuffle=True))
    torch.testing.assert_close(weights_of(model), by_hand.state_dict())
    other = importlib.import_module("lightning.pytorch.utilities.exceptions")
    with pytest.raises(other.MisconfigurationException, match="There are 2 BatchNormRecipe callbacks"):
        lightning.Trainer(callbacks=[BatchNormRecipe(), TwoRecipes()], **options).fit(model, loader())


class TwoRecipes(BatchNormRecipe):
    """Lightning itself refuses two of one class."""


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate is a factor above 0, or None to leave it; got 0.0"),
        ({"divide_weight_decay": -5}, ValueError, "divide_weight_decay is a factor above 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate is a factor above 0"),
        ({"decay_faster": 1}, ValueError, "a whole number above 1, or None; got 1"),
        ({"decay_faster": 2.5}, ValueError, "a whole number above 1, or None; got 2.5"),
        ({"reduce_augmentation": True}, TypeError, "is a function of the data module .* got a bool"),
    ],
)
def test_refuses(options, kind, message):
    with pytest.raises(kind, match=message):
        BatchNormRecipe(**options)
