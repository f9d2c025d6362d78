"""Reading the training data inside a fit: the same batches in kind, and training none the wiser."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.testing import assert_close
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bn_lightning.callbacks._loader import _fresh, to_training_device, training_batches
from bn_lightning.surgery.sandbox import preserve_random_state

pytestmark = [pytest.mark.filterwarnings("ignore:.*does not have many workers")]
DATA = torch.arange(10.0).view(10, 1)


class Module(pl.LightningModule):
    """Keeps the batches it trains on, and what reading the training data yields between the batches."""

    def __init__(self, num_batches=None, at=2):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.trained_on = []
        self.read = []
        self.num_batches = num_batches
        self.at = at

    def training_step(self, batch, batch_idx):
        self.trained_on.append(batch)
        return self.layer(torch.zeros(1, 1)).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == self.at - 1:
            with preserve_random_state():
                self.read = list(training_batches(self.trainer, num_batches=self.num_batches))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, loader, module=None, seed=0, **options):
    module = module or Module()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.pop("max_epochs", 1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    torch.manual_seed(seed)
    trainer.fit(module, loader)
    return module


def values(batches):
    return [batch.flatten().tolist() for batch in batches]


class Numbers(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return DATA[index]


def doubled(samples):
    return 2 * torch.stack(samples)


def generator():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "plain": lambda: DataLoader(Numbers(), batch_size=4),
    "drop last": lambda: DataLoader(Numbers(), batch_size=4, drop_last=True),
    "collate": lambda: DataLoader(Numbers(), batch_size=3, collate_fn=doubled),
    "batch sampler": lambda: DataLoader(Numbers(), batch_sampler=BatchSampler(range(10), 3, False)),
    "no batching": lambda: DataLoader(Numbers(), batch_size=None),
    "workers": lambda: DataLoader(Numbers(), batch_size=2, num_workers=1, persistent_workers=True),
    "a list": lambda: [DATA[:3], DATA[3:7]],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_the_batches_are_those_of_training(tmp_path, kind):
    module = fit(tmp_path, LOADERS[kind]() if kind != "a list" else Listed())
    assert len(module.trained_on) > 1
    assert values(module.read) == values(module.trained_on)


class Listed:
    def __iter__(self):
        return iter([DATA[:3], DATA[3:7]])

    def __len__(self):
        return 2


SHUFFLED = {
    "global": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "loader's generator": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, generator=generator()),
    "sampler's generator": lambda: DataLoader(
        Numbers(), batch_size=3, sampler=WeightedRandomSampler([1.0] * 10, 10, generator=generator())
    ),
    "nested generator": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers(), generator=generator()), 3, False)
    ),
}


@pytest.mark.parametrize("kind", SHUFFLED)
def test_reading_does_not_change_the_order_of_training(tmp_path, kind):
    never = fit(tmp_path, SHUFFLED[kind](), Module(at=-1), max_epochs=3)
    reading = fit(tmp_path, SHUFFLED[kind](), max_epochs=3)
    assert never.read == []
    assert values(reading.trained_on) == values(never.trained_on)
    if kind != "sampler's generator":  # which draws with replacement
        assert sorted(torch.cat(reading.read).flatten().tolist()) == DATA.flatten().tolist()
    assert values(reading.read) != values(DataLoader(Numbers(), batch_size=3))


class Numbered(IterableDataset):
    def __iter__(self):
        yield from DATA


class OneShot(Numbered):
    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


def test_an_iterable_data_set_needs_a_number(tmp_path):
    loader = DataLoader(Numbered(), batch_size=2)
    with pytest.raises(MisconfigurationException, match=r"no length.*give num_batches"):
        fit(tmp_path, loader)
    module = fit(tmp_path, loader, Module(num_batches=3))
    assert values(module.read) == values(module.trained_on)[:3]
    assert len(module.trained_on) == 5


class OwnIteration(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OwnIteration(Numbers(), batch_size=5), "is a OwnIteration, which iterates in its own way.*batches="),
        (lambda: Once(), "from a Once, an iterator.*Give batches="),
    ],
)
def test_what_cannot_be_read_twice_is_refused(tmp_path, make, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, make(), Module(num_batches=2, at=1))


class Once:
    def __init__(self):
        self.left = 3

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return DATA[:2]


def test_a_one_shot_data_set_is_refused():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match="from a OneShot, an iterator"):
        _fresh(trainer, DataLoader(OneShot(), batch_size=2), "Give batches=.")


def test_before_there_is_training_data():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match="There is no training data"):
        next(training_batches(trainer))


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_several_loaders_in_the_mode_of_training(tmp_path, mode):
    parts = {"a": DataLoader(Numbers(), batch_size=2), "b": DataLoader(Numbers(), batch_size=5)}
    module = fit(tmp_path, CombinedLoader(parts, mode))
    assert len(module.read) == len(module.trained_on) == (2 if mode == "min_size" else 5)
    for ours, theirs in zip(module.read, module.trained_on, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert ours[name] is theirs[name] is None or torch.equal(ours[name], theirs[name])


def test_a_dict_of_loaders_as_lightning_combines_it(tmp_path):
    module = fit(tmp_path, {"a": DataLoader(Numbers(), batch_size=2), "b": DataLoader(Numbers(), batch_size=5)})
    assert values(batch["b"] for batch in module.read) == values(batch["b"] for batch in module.trained_on)


def test_limit_train_batches(tmp_path):
    module = fit(tmp_path, DataLoader(Numbers(), batch_size=2), limit_train_batches=3)
    assert values(module.read) == values(module.trained_on)
    assert len(module.read) == 3


class Hooked(Module):
    """Counts its transfer hooks and compares what they make of a batch."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch + 1

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch * 10

    def on_train_end(self):
        self.moved = [to_training_device(self.trainer, self, batch) for batch in self.read]


def test_a_batch_takes_the_path_of_training(tmp_path):
    module = fit(tmp_path, DataLoader(TensorDataset(DATA), batch_size=5, collate_fn=lambda rows: DATA[:2]), Hooked())
    assert_close(module.trained_on[0], (DATA[:2] + 1) * 10)
    for ours, theirs in zip(module.moved, module.trained_on, strict=True):
        assert_close(ours, theirs)


def test_the_data_modules_hook_comes_first_and_precision_converts(tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Numbers(), batch_size=5)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch - 3

    class OnlyAfter(Module):
        on_train_end = Hooked.on_train_end
        on_after_batch_transfer = Hooked.on_after_batch_transfer

    module = OnlyAfter()
    module.layer.double()
    with pytest.warns(UserWarning, match="on_after_batch_transfer"):
        fit(tmp_path, Data(), module, precision="bf16-true")
    assert module.trained_on[0].dtype == torch.bfloat16
    for ours, theirs in zip(module.moved, module.trained_on, strict=True):
        assert_close(ours, theirs)
