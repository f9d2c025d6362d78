"""An arm's learning rate as a multiple of the module's own."""

from typing import TYPE_CHECKING

from bn_lightning.callbacks._compat import CallbackBase
from bn_lightning.callbacks._learning_rate import scale_learning_rates

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class ScaledLearningRate(CallbackBase):
    """Multiplies the learning rates of all optimizers before the first step, so arms need no option of the module.

    Args:
        factor: What to multiply by.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Multiply, once the optimizers are made."""
        scale_learning_rates(trainer, self.factor)
