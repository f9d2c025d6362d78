import pytest
import pytorch_lightning as pl
import torch
from inserted import Lit, data, loader, module, trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.callbacks._example import example_of


def test_empty_and_one_shot_training_data(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return self

        def __next__(self):
            return torch.randn(4), torch.tensor(0)

    with pytest.raises(MisconfigurationException, match=r"hold no batch to trace with\. Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), [])
    with pytest.raises(MisconfigurationException, match=r"from a Stream, an iterator.*Set example_input_array"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), DataLoader(Stream(), batch_size=8))
    batches = iter([(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))])
    with pytest.raises(MisconfigurationException, match="from a list_iterator, an iterator"):
        trainer(tmp_path, BatchNormInsertion()).fit(module(), batches)


def test_other_shapes_of_training_data(tmp_path):
    class Iterable(IterableDataset):
        def __iter__(self):
            x, y = data()[:]
            return iter(list(zip(x, y, strict=True)))

    class Named(Lit):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    one = DataLoader(Iterable(), batch_size=8)
    trainer(tmp_path, BatchNormInsertion()).fit(module(), one)
    trainer(tmp_path, BatchNormInsertion()).fit(module(kind=Named), {"a": loader(), "b": loader()})

    class Batches:
        def __iter__(self):
            return iter([data()[:8], data()[8:16]])

    trainer(tmp_path, BatchNormInsertion()).fit(module(), Batches())


def test_an_example_without_any_training_data(tmp_path):
    with pytest.raises(MisconfigurationException, match="no training data to take an example batch from"):
        example_of(trainer(tmp_path), module())


def test_without_one_the_first_batch_goes_through_the_transfer_hooks_and_logging_is_muted(tmp_path):
    class Transferred(Lit):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch["x"], batch["y"]

    class Dictionaries(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return {"x": x, "y": y}

    callback = BatchNormInsertion()
    loaders = DataLoader(Dictionaries(*data().tensors), batch_size=8)
    trainer(tmp_path, callback).fit(module(kind=Transferred), loaders)
    assert callback.plan.entry == "training_step"
    assert callback.plan.inserted[0].shape == (8, 8)


def test_taking_the_example_moves_neither_random_state_nor_generators_nor_the_loader(tmp_path):
    order: list[list[int]] = []

    class Recorded(Lit):
        def on_train_batch_start(self, batch, batch_idx):
            order[-1].extend(batch[1].tolist())

    for callbacks in ([], [BatchNormInsertion()]):
        order.append([])
        pl.seed_everything(3, verbose=False)
        shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(5))
        trainer(tmp_path, *callbacks).fit(module(kind=Recorded), shuffled)
        order[-1].append(int(torch.randint(0, 10**9, ())))
    assert order[0] == order[1]


def test_tracing_leaves_the_metrics_of_the_module_alone(tmp_path):
    class Measured(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(num_classes=3, average="micro")

        def training_step(self, batch, batch_idx):
            self.accuracy(self(batch[0]), batch[1])
            return super().training_step(batch, batch_idx)

    model = module(kind=Measured)
    trainer(tmp_path, BatchNormInsertion(), max_epochs=1).fit(model, loader())
    assert model.accuracy._update_count == 4


def test_with_an_example_input_array_forward_is_traced_and_no_batch_is_taken(tmp_path):
    callback = BatchNormInsertion()
    trainer(tmp_path, callback).fit(module(kind=WithExample), loader())
    assert callback.plan.entry == "forward"


class WithExample(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 4)

    def training_step(self, batch, batch_idx):
        assert self.trainer.training
        assert self.trainer.state.stage is not None
        assert self.trainer.train_dataloader is not None, "ran before the loaders were set up"
        return super().training_step(batch, batch_idx)
