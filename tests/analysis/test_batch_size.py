import copy

import pytest
import pytorch_lightning as pl
import torch
from peek import peek, recorded
from tiny import TinyData, TinyNet, tiny_problem
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from bn_lightning.analysis.batch_size import BatchSize
from bn_lightning.analysis.study import Arm


def trained(tmp_path, size, *, data=TinyData, **options):
    arm = Arm(name="arm", callbacks=lambda: [BatchSize(size, **options)])
    return peek(tiny_problem(data=data), arm, tmp_path)


def counted(**options):
    """Data of 9 samples that say which they are."""

    class Counted(TinyData):
        def train_dataloader(self):
            x = torch.arange(9.0)[:, None].expand(9, 3)
            return DataLoader(TensorDataset(x, x[:, :1]), **options)

    return Counted


@pytest.mark.parametrize("size", [2, 8, 16])
def test_batches_have_the_size_and_the_rate_follows(tmp_path, size):
    seen, training = trained(tmp_path, size)
    assert set(seen.sizes) == {size}
    assert seen.rates == [pytest.approx(0.1 * size / 8)]
    assert recorded(training, "batch_size") == {0: size}
    assert recorded(training, "learning_rate_factor") == {0: size / 8}


def test_the_rate_can_stay(tmp_path):
    seen, training = trained(tmp_path, 2, scale_rate=False)
    assert seen.rates == [0.1]
    assert recorded(training, "learning_rate_factor") == {0: 1.0}


def test_the_order_of_the_samples_is_the_same_at_every_size(tmp_path):
    small, large = (trained(tmp_path / str(size), size)[0] for size in (4, 16))
    assert torch.equal(small.first[0], large.first[0][:4])


def test_the_data_module_gets_its_own_loader_back(tmp_path):
    seen, _ = trained(tmp_path, 2)
    assert "train_dataloader" not in vars(seen.data)
    assert seen.data.train_dataloader().batch_size == 8


def test_a_size_above_that_of_the_data_takes_all_of_them_and_says_so(tmp_path):
    seen, training = trained(tmp_path, 512)
    assert set(seen.sizes) == {32}
    assert seen.rates == [pytest.approx(0.4)]
    assert recorded(training, "batch_size") == {0: 32}
    assert (
        "NoEffectWarning",
        "A batch size of 512 was asked for, and the training data hold 32 samples: batches of all of them are used.",
    ) in training.warnings


def test_a_last_batch_of_one_is_dropped_and_other_short_ones_stay(tmp_path):
    data = counted(batch_size=3, shuffle=False)
    assert set(trained(tmp_path / "4", 4, data=data)[0].sizes) == {4}
    assert set(trained(tmp_path / "5", 5, data=data)[0].sizes) == {5, 4}


def test_a_batch_sampler_of_torch_is_made_anew_and_collation_is_kept(tmp_path):
    def collate(samples):
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return x + 100, y

    data = counted(batch_sampler=BatchSampler(RandomSampler(range(9)), 3, drop_last=True), collate_fn=collate)
    seen, _ = trained(tmp_path, 4, data=data)
    assert set(seen.sizes) == {4}
    assert seen.first[0].min() >= 100


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(20):
            yield torch.full((3,), index / 20), torch.zeros(1)


def streamed(**options):
    class Streamed(TinyData):
        def train_dataloader(self):
            return DataLoader(Stream(), **options)

    return Streamed


def test_an_iterable_data_set_is_batched_anew(tmp_path):
    assert set(trained(tmp_path, 5, data=streamed(batch_size=4))[0].sizes) == {5}


class OwnSampler(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [DataLoader(range(4))] * 2, "train_dataloader returned a list, not one DataLoader"),
        (lambda: DataLoader(Stream(), batch_size=None), "its iterable data set makes the batches itself"),
        (
            lambda: DataLoader(range(8), batch_sampler=OwnSampler(RandomSampler(range(8)), 2, drop_last=False)),
            "its loader's batch sampler is a OwnSampler, not BatchSampler",
        ),
        (lambda: DataLoader(range(8), batch_size=None), "its loader's batch sampler is none, not BatchSampler"),
    ],
)
def test_data_that_cannot_be_given_a_size_are_refused_in_one_error(tmp_path, make, reason):
    class Odd(TinyData):
        def train_dataloader(self):
            return make()

    with pytest.raises(Exception, match=f"cannot be given a batch size of 4: {reason}. Give data whose"):
        trained(tmp_path, 4, data=Odd)


def test_loaders_that_come_from_no_data_module_are_refused(tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=1, callbacks=[BatchSize(4)], accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(Exception, match="a batch size of 4: they do not come from a LightningDataModule"):
        trainer.fit(TinyNet(), TinyData().train_dataloader(), TinyData().val_dataloader())


def test_a_failed_fit_leaves_the_data_module_as_it_was(tmp_path):
    class Failing(TinyNet):
        def training_step(self, batch, batch_idx):
            raise OSError("the disk is on fire")

    data = TinyData()
    before = copy.copy(vars(data))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=1, callbacks=[BatchSize(4)], accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(OSError, match="on fire"):
        trainer.fit(Failing(), datamodule=data)
    assert ("train_dataloader" in vars(data)) == ("train_dataloader" in before)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_without_samples_is_refused(size):
    with pytest.raises(ValueError, match="A batch holds at least 1 sample, not"):
        BatchSize(size)
