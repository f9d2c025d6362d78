import pytest
import pytorch_lightning as pl
import torch
from peek import peek
from tiny import TinyData, TinyNet, tiny_problem
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from bn_lightning.analysis.evaluation import evaluate_batches, validation_batches
from bn_lightning.analysis.study import Arm
from bn_lightning.callbacks import BatchNormInsertion


class Logging(TinyNet):
    """Logs in every way: numbers, a metric, a dict, and once at the end; and counts its own steps."""

    def __init__(self):
        super().__init__()
        self.average, self.outputs, self.seen = MeanMetric(), [], 0

    def validation_step(self, batch, batch_idx):
        error = (self(batch[0]) - batch[1]).square().squeeze(1)
        self.average.update(error)
        self.outputs.append(error.mean())
        self.seen += 1
        self.log("val_loss", error.mean(), batch_size=len(error))
        self.log_dict({"error": error.mean(), "average": self.average, "index": float(batch_idx)})
        self.log("largest", error.max(), reduce_fx="max")

    def on_validation_epoch_end(self):
        self.log("at_end", torch.stack(self.outputs).mean())
        self.outputs.clear()


class Uneven(TinyData):
    """The last validation batch is short."""

    def val_dataloader(self):
        x = torch.linspace(-1, 1, 96).reshape(32, 3)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=12)


class Beside(pl.Callback):
    """Evaluates after each validation and keeps both results."""

    def __init__(self):
        self.pairs = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            ours = evaluate_batches(trainer, pl_module, validation_batches(trainer))
            self.pairs.append((ours, {name: float(value) for name, value in trainer.callback_metrics.items()}))


def run(tmp_path, *callbacks, **changes):
    problem = tiny_problem(module=Logging, data=Uneven, **changes)
    return peek(problem, Arm(name="arm", callbacks=lambda: [BatchNormInsertion(), *callbacks]), tmp_path)


def test_the_values_are_those_that_lightning_logs(tmp_path):
    beside = Beside()
    run(tmp_path, beside)
    assert len(beside.pairs) == 2
    for ours, logged in beside.pairs:
        assert set(ours) == {"val_loss", "error", "average", "index", "at_end"}
        for name, value in ours.items():
            assert value == pytest.approx(logged[name], rel=1e-6), name


def test_what_is_logged_on_step_and_on_epoch_has_both_names(tmp_path):
    class Twice(TinyNet):
        def __init__(self):
            super().__init__()
            self.average = MeanMetric()

        def validation_step(self, batch, batch_idx):
            loss = F.mse_loss(self(batch[0]), batch[1])
            self.average.update(loss)
            size = {"batch_size": len(batch[0])}
            self.log("val_loss", loss, on_step=True, on_epoch=True, **size)
            self.log("by_default", loss, on_step=True, **size)
            self.log("by_place", loss, False, None, True, True, **size)
            self.log("largest", loss, False, None, True, True, "max")
            self.log("once", loss, on_epoch=True, **size)
            self.log_dict({"one": loss, "average": self.average}, False, None, True, True, **size)

    beside = Beside()
    peek(tiny_problem(module=Twice, data=Uneven), Arm(name="arm", callbacks=lambda: [beside]), tmp_path)
    twice = {"val_loss", "by_default", "by_place", "one", "average"}
    for ours, logged in beside.pairs:
        assert set(ours) == {"once", *twice, *(f"{name}_epoch" for name in twice)}
        assert ours == pytest.approx({name: logged[name] for name in ours}, rel=1e-6)


def test_training_does_not_notice(tmp_path):
    quiet, _ = run(tmp_path / "quiet")
    beside = Beside()
    looked, _ = run(tmp_path / "looked", beside)
    for name, value in quiet.ending.items():
        assert torch.equal(value, looked.ending[name]), name
    assert looked.module.seen == quiet.module.seen
    assert torch.equal(looked.first[0], quiet.first[0])
    assert all("log" not in vars(seen.module) or seen.module.log.__self__ for seen in (looked, quiet))


def test_as_many_batches_are_read_as_the_trainer_validates(tmp_path):
    beside = Beside()
    run(tmp_path, beside, trainer_options={"accelerator": "cpu", "limit_val_batches": 2})
    for ours, logged in beside.pairs:
        assert ours["index"] == logged["index"] == 0.5


def test_a_step_without_an_index_and_in_evaluation_mode(tmp_path):
    class Bare(TinyNet):
        def validation_step(self, batch):
            assert not self.training
            self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]), batch_size=len(batch[0]))

    beside = Beside()
    peek(tiny_problem(module=Bare, data=Uneven), Arm(name="arm", callbacks=lambda: [beside]), tmp_path)
    for ours, logged in beside.pairs:
        assert ours == pytest.approx(logged, rel=1e-6)


def test_several_validation_loaders_are_refused(tmp_path):
    class Two(TinyData):
        def val_dataloader(self):
            return [TinyData.val_dataloader(self)] * 2

    class Indexed(TinyNet):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return None

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=4, callbacks=[Beside()], accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(Exception, match=r"these data have 2 validation loaders. Give data whose val_dataloader"):
        trainer.fit(Indexed(), datamodule=Two())
