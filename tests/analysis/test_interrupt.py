import signal

import pytest
import pytorch_lightning as pl
from classifier import Classifier, Images

from bn_lightning.analysis.interrupt import keyboard_interrupt_kept


def test_ctrl_c_in_a_trainer_does_not_end_the_process_and_can_be_pressed_again():
    class Interrupted(Classifier):
        def predict_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), keyboard_interrupt_kept():
        trainer.predict(Interrupted(), dataloaders=Images().test_dataloader())
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_exit_for_another_reason_stays_one():
    with pytest.raises(SystemExit, match="7"), keyboard_interrupt_kept():
        raise SystemExit(7)
