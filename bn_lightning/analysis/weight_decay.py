"""An arm's weight decay, in place of the module's own."""

from typing import TYPE_CHECKING

from bn_lightning.callbacks._compat import CallbackBase, misconfiguration

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class WeightDecay(CallbackBase):
    """Sets the weight decay of all parameter groups of all optimizers before the first step.

    What that does is the optimizer's own: SGD and Adam add λ·w to the gradient (an L2 penalty of λ/2·‖w‖²), AdamW
    shrinks the weights beside it. Biases, scales and shifts are in the groups that the module made, and decay too.

    Args:
        value: λ, 0 or above.

    Raises:
        ValueError: If it is negative.
        MisconfigurationException: At the start of fit, if an optimizer has no weight decay.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        if not value >= 0:
            raise ValueError(f"A weight decay is 0 or above, not {value}.")
        self.value = value

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Set it, once the optimizers are made."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if "weight_decay" not in group:
                    raise misconfiguration(
                        trainer,
                        f"{type(optimizer).__name__} of {type(pl_module).__name__} has no weight_decay to set to "
                        f"{self.value:g}. Use an optimizer that has, such as SGD, Adam or AdamW.",
                    )
                group["weight_decay"] = self.value
