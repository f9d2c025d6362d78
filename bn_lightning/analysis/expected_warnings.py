"""Warnings that an arm is made to provoke, kept out of a study's own."""

import warnings
from typing import TYPE_CHECKING

from bn_lightning.callbacks._compat import CallbackBase

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class ExpectedWarnings(CallbackBase):
    """Ignores warnings whose text begins as expected, from the set-up of a fit to its end.

    A study that looks for settings at which networks break would else say in every such cell what its results say
    already. Put it before the callbacks that warn. The filters of the process come back at the end.

    Args:
        *messages: Regular expressions that the warnings' texts begin with.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__()
        self.messages = messages
        self._guard: warnings.catch_warnings[None] | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Begin to ignore them."""
        if self._guard is None:
            self._guard = warnings.catch_warnings()
            self._guard.__enter__()
            for message in self.messages:
                warnings.filterwarnings("ignore", message=message)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Let them be seen again."""
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Let them be seen again."""
        self.teardown(trainer, pl_module, "fit")
