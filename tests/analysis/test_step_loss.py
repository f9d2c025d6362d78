import math

import pytest
import pytorch_lightning as pl
from tiny import TinyData, TinyNet

from bn_lightning.analysis.step_loss import StepLoss


class Remembering(TinyNet):
    """Keeps what its own training_step computed, batch by batch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.computed = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.computed.append(loss.item())
        return loss


class Manual(Remembering):
    """Optimizes manually, and steps after every so many batches."""

    def __init__(self, every):
        super().__init__()
        self.every, self.automatic_optimization = every, False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss / self.every)
        if len(self.computed) % self.every == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return loss


class TwoSteps(Manual):
    """Two optimizer steps a batch."""

    def training_step(self, batch, batch_idx):
        self.optimizers().step()
        return super().training_step(batch, batch_idx)


def fitted(module, max_steps=6, callbacks=(), **options):
    kept = StepLoss()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[kept, *callbacks], max_steps=max_steps, **quiet, **options)
    trainer.fit(module, TinyData())
    return kept.table()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_loss_is_that_of_the_last_micro_batch_undivided(accumulated):
    module = Remembering()
    table = fitted(module, accumulate_grad_batches=accumulated)
    assert table["step"].tolist() == list(range(6))
    assert len(module.computed) == 6 * accumulated
    assert table["value"].tolist() == module.computed[accumulated - 1 :: accumulated]
    assert set(table["quantity"]) == {"step_loss"}


@pytest.mark.parametrize("every", [1, 2])
def test_the_loss_of_a_module_that_optimizes_manually_is_that_of_the_batch_it_steps_in(every):
    module = Manual(every)
    table = fitted(module)
    assert table["step"].tolist() == list(range(6))
    assert table["value"].tolist() == module.computed[every - 1 :: every]


def test_where_a_batch_makes_two_steps_its_loss_stands_at_the_second():
    module = TwoSteps(1)
    table = fitted(module)
    assert table["step"].tolist() == [1, 3, 5]
    assert table["value"].tolist() == module.computed


class Stopping(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= 4


def test_a_run_that_ends_early_ends_in_nan():
    table = fitted(Remembering(), callbacks=[Stopping()])
    assert table["step"].tolist() == [0, 1, 2, 3, 4]
    assert math.isnan(table["value"].iloc[-1])
    assert table["value"].iloc[:-1].notna().all()


def test_without_a_step_the_table_is_empty():
    assert StepLoss().table().empty
