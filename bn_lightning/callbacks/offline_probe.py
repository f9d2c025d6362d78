"""Look at a module where its training would begin, and train nothing."""

from collections.abc import Callable
from typing import Any

import torch

from bn_lightning.callbacks._compat import CallbackBase, LightningModule, Trainer
from bn_lightning.callbacks._example import Example, example_of
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.callbacks._units import probe_batches
from bn_lightning.surgery.sandbox import preserve_random_state

Look = Callable[[Any, list[Any], Example], None]
"""``look(module, batches, example)``."""


class ProbeAtTrainStart(CallbackBase):
    """Calls a function with the module and a probe set of training batches at the start of a fit, then stops it.

    By then the module is set up and on its device, and the batches have taken the path of training: transfer
    hooks, device, precision. Within the call logging is muted, metrics come back, and the precision is that of
    training. No batch is trained on. The order of a shuffling loader is that of seed 0.

    Args:
        look: See `Look`. What it raises ends the fit, but for Ctrl-C, which is kept in `interrupt`: Lightning would end
            the process on it.
        probe_size: Samples of the training data, in whole batches.

    Attributes:
        called: Whether there was a training batch to look with.
        interrupt: The KeyboardInterrupt that ended the call; None where there was none.

    Example:
        >>> callback = ProbeAtTrainStart(lambda module, batches, example: print(len(batches)), probe_size=100)
        >>> # Trainer(callbacks=[callback]).fit(module, datamodule=data)
    """

    def __init__(self, look: Look, *, probe_size: int) -> None:
        super().__init__()
        self.called = False
        self.interrupt: KeyboardInterrupt | None = None
        self._look = look
        self._probe_size = probe_size

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look, and let training end before its first batch."""
        # Its loop asks for this before each batch.
        trainer.should_stop = True
        self.called = True
        try:
            with preserve_random_state(), no_trace(pl_module):
                torch.manual_seed(0)
                batches = probe_batches(trainer, pl_module, None, self._probe_size)
                with trainer.precision_plugin.train_step_context():
                    self._look(pl_module, batches, example_of(trainer, pl_module))
        except KeyboardInterrupt as error:
            self.interrupt = error
