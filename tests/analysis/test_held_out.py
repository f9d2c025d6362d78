import pickle

import pytest
import torch
from tiny import TinyData, tiny_problem
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from bn_lightning.analysis.held_out import held_out_problem
from bn_lightning.analysis.problems.digits import digits_problem


class Given(TinyData):
    """Data whose training loader is made by the test."""

    loader = None

    def train_dataloader(self):
        return type(self).loader(super().train_dataloader().dataset)


def given(make):
    return held_out_problem(tiny_problem(data=type("Given", (Given,), {"loader": staticmethod(make)})))


def samples(loader):
    return torch.cat([batch[0] for batch in loader])


def test_training_and_held_out_samples_are_those_of_training_once():
    data = held_out_problem(tiny_problem(), share=0.25).data()
    kept, held_out = samples(data.train_dataloader()), samples(data.val_dataloader())
    assert (len(kept), len(held_out)) == (24, 8)
    everything = samples(TinyData().val_dataloader())
    assert sorted(torch.cat([kept, held_out]).tolist()) == sorted(everything.tolist())


def test_every_run_holds_out_the_same_samples():
    problem = pickle.loads(pickle.dumps(held_out_problem(tiny_problem())))
    first, second = (samples(problem.data().val_dataloader()) for _ in range(2))
    assert problem.name == "tiny_held_out"
    assert torch.equal(first, second)


def test_loaders_keep_their_settings():
    def make(dataset):
        return DataLoader(dataset, batch_size=7, shuffle=True, drop_last=True, collate_fn=len)

    data = given(make).data()
    train, held_out = data.train_dataloader(), data.val_dataloader()
    assert list(train) == [7] * 4  # of 29
    assert list(held_out) == [3]
    torch.manual_seed(0)
    plain = given(lambda dataset: DataLoader(dataset, batch_size=4)).data().train_dataloader()
    assert isinstance(plain.sampler, SequentialSampler)


@pytest.mark.parametrize("kind", [SequentialSampler, RandomSampler])
@pytest.mark.parametrize("by_batches", [False, True])
def test_samples_that_the_loader_leaves_out_are_neither_trained_on_nor_held_out(kind, by_batches):
    def make(dataset):
        sampler = kind(range(20))  # of 32
        by_itself = {"sampler": sampler, "batch_size": 4, "drop_last": True}
        options = {"batch_sampler": BatchSampler(sampler, 4, True)} if by_batches else by_itself
        return DataLoader(dataset, **options)

    data = given(make).data()
    train, held_out = data.train_dataloader(), data.val_dataloader()
    assert sorted(train.dataset.indices + held_out.dataset.indices) == list(range(20))
    assert len(held_out.dataset) == 2
    assert (train.batch_size, train.drop_last, held_out.batch_size) == (4, True, 4)
    assert type(train.sampler) is kind


def test_the_test_set_of_digits_is_not_among_them():
    problem = digits_problem()
    data, own = held_out_problem(problem).data(), problem.data()
    data.setup()
    own.setup()
    held_out = {tuple(row) for row in next(iter(data.val_dataloader()))[0].tolist()}
    test = {tuple(row) for row in own.sets["test"].images.tolist()}
    train = {tuple(row) for row in own.sets["train"].images.tolist()}
    assert held_out <= train
    assert not held_out & (test - train)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), torch.zeros(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda dataset: [DataLoader(dataset)], "gives a list, not one plain DataLoader"),
        (lambda dataset: DataLoader(Stream()), "Stream has no length"),
        (
            lambda dataset: DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 32, 32)),
            "drawn by a WeightedRandomSampler",
        ),
        (
            lambda dataset: DataLoader(dataset, batch_sampler=type("Own", (BatchSampler,), {})(range(32), 4, False)),
            "batches are drawn by a Own",
        ),
    ],
)
def test_data_that_cannot_be_split_are_refused(make, words):
    data = given(make).data()
    with pytest.raises(ValueError, match=rf"of Given cannot be held out for tuning: .*{words}.*on=\.\.\."):
        data.val_dataloader()


def test_too_few_samples_are_refused():
    data = given(lambda dataset: DataLoader(torch.utils.data.Subset(dataset, [0]))).data()
    with pytest.raises(ValueError, match="Given has 1 training samples, too few"):
        data.train_dataloader()


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        held_out_problem(tiny_problem(), share=share)
