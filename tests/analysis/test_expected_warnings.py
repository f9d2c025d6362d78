import warnings

import pytest
import pytorch_lightning as pl
from peek import peek
from tiny import Failing, tiny_problem

from bn_lightning.analysis.expected_warnings import ExpectedWarnings
from bn_lightning.analysis.study import Arm


class Noisy(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        warnings.warn("the net at 'x' has 2 values", UserWarning, stacklevel=1)
        warnings.warn("the disk is full", UserWarning, stacklevel=1)


def test_what_is_expected_is_ignored_and_the_rest_is_seen(tmp_path):
    arm = Arm(name="arm", callbacks=lambda: [ExpectedWarnings("the net at .* has 2"), Noisy()])
    texts = [text for _, text in peek(tiny_problem(), arm, tmp_path)[1].warnings]
    assert "the disk is full" in texts
    assert not any("2 values" in text for text in texts)


@pytest.mark.parametrize("breaks", [False, True])
def test_the_filters_come_back(breaks):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    before = list(warnings.filters)
    problem = tiny_problem()
    extra = [Failing()] if breaks else []
    callbacks = [ExpectedWarnings("the net at"), *extra]
    trainer = pl.Trainer(max_steps=1, callbacks=callbacks, accelerator="cpu", enable_model_summary=False, **quiet)
    if breaks:
        with pytest.raises(OSError, match="on fire"):
            trainer.fit(problem.module(), datamodule=problem.data())
    else:
        trainer.fit(problem.module(), datamodule=problem.data())
    assert list(warnings.filters) == before
