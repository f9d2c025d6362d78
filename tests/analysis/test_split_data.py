import pytest
import pytorch_lightning as pl
import torch
from classifier import Classifier, Images

from bn_lightning.analysis.split_data import SplitData
from bn_lightning.errors import UnknownNameError


class Augmented(Images):
    """Draws from the global generator for every batch."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + torch.rand(()), batch[1]


def batches_of(run, module, callbacks=()):
    seen = []
    run.predict(module, lambda batch, index: seen.append((index, *batch)), list(callbacks))
    return seen


def test_every_module_is_given_the_same_batches_also_where_they_are_random():
    run = SplitData(pl, Augmented(shuffle=True), "val")
    torch.manual_seed(3)
    expected = torch.rand(2)
    modules = Classifier(), Classifier()
    torch.manual_seed(3)
    first, second = (batches_of(run, module) for module in modules)
    assert torch.equal(torch.rand(2), expected)
    assert [index for index, *_ in first] == list(range(4))
    assert run.batches == 4
    for (_, *one), (_, *other) in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_modules_own_predict_step_is_not_run():
    class Predicting(Classifier):
        def predict_step(self, batch, batch_idx):
            raise AssertionError("not this one")

    assert len(batches_of(SplitData(pl, Images(), "test"), Predicting())) == 3


def test_data_that_would_be_split_at_random_in_each_stage_are_split_once():
    class Drawn(Images):
        def setup(self, stage):
            self.kept = torch.randperm(23)

        def test_dataloader(self):
            return [[self.images(23)[self.kept]]]

    run = SplitData(pl, Drawn(), "test")
    (first,), (second,) = (batches_of(run, Classifier()) for _ in range(2))
    assert torch.equal(first[2], second[2])


def test_a_split_that_is_none():
    with pytest.raises(UnknownNameError, match=r"no split 'train'\. There are: test, val"):
        SplitData(pl, Images(), "train")
