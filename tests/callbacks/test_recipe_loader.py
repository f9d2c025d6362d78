import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, data, loader, module, trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from recipe_cases import OFF, only
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bn_lightning.callbacks import BatchNormRecipe
from bn_lightning.errors import NoEffectWarning

NUMBERS = TensorDataset(torch.arange(32.0))


class Reads(pl.LightningModule):
    """Notes the samples of each epoch in their order."""

    def __init__(self, loaders=None) -> None:
        super().__init__()
        self.weight, self.loaders, self.epochs = torch.nn.Parameter(torch.ones(())), loaders, []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        first = batch if isinstance(batch, list) else next(iter(batch.values()))
        self.epochs[-1] += first[0].reshape(-1).tolist()
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Makes(Reads):
    """Makes its loaders itself."""

    def train_dataloader(self):
        return self.loaders()


class DataModule(pl.LightningDataModule):
    def __init__(self, loaders) -> None:
        super().__init__()
        self.loaders, self.distortion = loaders, 8

    def setup(self, stage):
        self.distortion = 4

    def train_dataloader(self):
        return self.loaders()


def in_order(**options):
    return DataLoader(NUMBERS, batch_size=8, **options)


def is_shuffled(epochs):
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert list(range(32)) not in epochs


class Own(Sampler):
    def __iter__(self):
        return iter(range(32))

    def __len__(self) -> int:
        return 32


class Backwards(SequentialSampler):
    def __iter__(self):
        return reversed(range(len(self.data_source)))


LOADERS = {
    "plain": in_order,
    "workers": lambda: in_order(num_workers=1),
    "persistent workers": lambda: in_order(num_workers=1, persistent_workers=True),
    "batch sampler": lambda: DataLoader(NUMBERS, batch_sampler=BatchSampler(SequentialSampler(NUMBERS), 8, False)),
    "no batches": lambda: DataLoader(NUMBERS, batch_size=None),
    "distributed": lambda: in_order(sampler=DistributedSampler(NUMBERS, 1, 0, shuffle=False)),
    "several": lambda: {"one": in_order(), "two": in_order()},
    "combined": lambda: CombinedLoader({"one": in_order(), "two": in_order()}, "min_size"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_epoch_has_its_order_and_the_loader_gets_its_own_back(tmp_path, name):
    loaders, model, recipe = LOADERS[name](), Reads(), only(shuffle=True)
    trainer(tmp_path, recipe, max_epochs=3).fit(model, loaders)
    is_shuffled(model.epochs)
    flat = CombinedLoader(loaders).flattened if not isinstance(loaders, CombinedLoader) else loaders.flattened
    assert [change.name for change in recipe.report.changes] == [f"training loader {i}" for i in range(len(flat))]
    after = Reads()
    trainer(tmp_path, max_epochs=1).fit(after, loaders)
    assert after.epochs == [list(range(32))]


@pytest.mark.parametrize("reload", [0, 1])
def test_loaders_that_a_module_makes(tmp_path, reload):
    model, recipe = Makes(in_order), only(shuffle=True)
    trainer(tmp_path, recipe, max_epochs=3, reload_dataloaders_every_n_epochs=reload).fit(model)
    is_shuffled(model.epochs)
    assert len(recipe.report.changes) == 1
    assert "train_dataloader" not in vars(model)


def test_loaders_that_a_data_module_makes(tmp_path):
    model, made = Reads(), DataModule(in_order)
    trainer(tmp_path, only(shuffle=True), max_epochs=3).fit(model, datamodule=made)
    is_shuffled(model.epochs)
    assert "train_dataloader" not in vars(made)


def test_the_generator_of_a_loader_gives_the_order(tmp_path):
    by_recipe, by_hand = Reads(), Reads()
    options = [{"generator": torch.Generator().manual_seed(3)} for _ in range(2)]
    trainer(tmp_path, only(shuffle=True), max_epochs=2).fit(by_recipe, in_order(**options[0]))
    trainer(tmp_path, max_epochs=2).fit(by_hand, in_order(shuffle=True, **options[1]))
    assert by_recipe.epochs == by_hand.epochs


PART = SequentialSampler(range(40, 60))  # draws 0 to 19


@pytest.mark.parametrize(
    "options", [{"sampler": PART, "batch_size": 8}, {"batch_sampler": BatchSampler(PART, 8, False)}], ids=" ".join
)
def test_samples_that_the_loader_leaves_out_stay_out(tmp_path, options):
    model = Reads()
    trainer(tmp_path, only(shuffle=True), max_epochs=2).fit(model, DataLoader(NUMBERS, **options))
    assert [sorted(epoch) for epoch in model.epochs] == [list(range(20))] * 2
    assert model.epochs[0] != model.epochs[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: in_order(shuffle=True),
        lambda: in_order(sampler=WeightedRandomSampler(torch.ones(32), 32)),
        lambda: in_order(sampler=DistributedSampler(NUMBERS, 1, 0)),
    ],
)
def test_loaders_that_shuffle_are_left_without_a_word(tmp_path, make):
    recipe = only(shuffle=True)
    loaders = make()
    sampler = loaders.sampler
    trainer(tmp_path, recipe, max_epochs=1).fit(Reads(), loaders)
    assert recipe.report.changes == recipe.report.without_effect == ()
    assert loaders.sampler is sampler


class Batches:
    def __init__(self, batches) -> None:
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(NUMBERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "Stream, left: an iterable data set has its own order"),
        (lambda: in_order(sampler=Own()), "Own, left: a sampler of your own gives the order"),
        (lambda: in_order(sampler=Backwards(NUMBERS)), "Backwards, left: a sampler of your own gives the order"),
        (lambda: Batches(in_order()), "Batches, left: it is no DataLoader"),
    ],
)
def test_orders_that_cannot_be_changed_are_named(tmp_path, make, message):
    with pytest.warns(NoEffectWarning, match=f"nothing to change for shuffle .training loader 0: {message}"):
        trainer(tmp_path, only(shuffle=True), max_epochs=1).fit(Reads(), make())


def test_overfitting_on_purpose_keeps_its_batches(tmp_path):
    model = Reads()
    with pytest.warns(NoEffectWarning, match=r"shuffle .*Trainer\(overfit_batches=...\) asks for them in order"):
        trainer(tmp_path, only(shuffle=True), max_epochs=2, overfit_batches=2).fit(model, in_order())
    assert model.epochs == [list(range(16))] * 2


def test_augmentation_is_reduced_by_a_function_of_the_data_module(tmp_path):
    def halve(data_module):
        data_module.distortion /= 2
        return f"distortion {data_module.distortion}"

    recipe, made = only(reduce_augmentation=halve), DataModule(in_order)
    trainer(tmp_path, recipe, max_epochs=2).fit(Reads(), datamodule=made)
    assert made.distortion == 2
    (change,) = recipe.report.changes
    assert (change.item, change.name, change.after) == ("reduce_augmentation", "DataModule", "distortion 2.0")


@pytest.mark.parametrize(("reload", "calls"), [(0, 1), (1, 3)])
def test_augmentation_is_reduced_by_a_function_of_the_loaders_each_time_they_are_made(tmp_path, reload, calls):
    seen = []
    recipe = BatchNormRecipe(**{**OFF, "reduce_augmentation": seen.append})
    trainer(tmp_path, recipe, max_epochs=3, reload_dataloaders_every_n_epochs=reload).fit(Makes(in_order))
    assert [type(made) for made in seen] == [DataLoader] * calls
    (change,) = recipe.report.changes
    assert (change.name, change.before, change.after) == ("DataLoader", "before list.append", "after it")


def test_a_fit_that_fails_gives_the_order_back(tmp_path):
    class Fails(Lit):
        def training_step(self, batch, batch_idx):
            raise OSError("no step")

    loaders = loader()
    sampler = loaders.sampler
    with pytest.raises(OSError, match="no step"):
        trainer(tmp_path, only(shuffle=True)).fit(module(kind=Fails), loaders)
    assert loaders.sampler is loaders.batch_sampler.sampler is sampler
    torch.testing.assert_close(next(iter(loaders))[0], data()[:8][0], rtol=0, atol=0)
