"""Change the rates, the weight decay and the schedules of a Trainer's optimizers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from bn_lightning.callbacks._learning_rate import scale_learning_rates
from bn_lightning.callbacks._recipe_report import RecipeChange, written
from bn_lightning.callbacks._recipe_schedule import speed_up_schedules

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def change_optimizers(
    trainer: "Trainer",
    module: "LightningModule",
    *,
    learning_rate: float | None,
    divide_weight_decay: float | None,
    decay_faster: int | None,
    undo: Callable[[Callable[[], None]], object],
    resumed: bool,
) -> list[RecipeChange]:
    """Multiply the rates, divide the weight decay, let the schedules pass faster.

    Args:
        trainer: A Trainer whose optimizers are made, and restored where it resumes.
        module: Its module.
        learning_rate: What to multiply the rates by, or None.
        divide_weight_decay: What to divide the weight decay by, or None.
        decay_faster: How many steps a scheduler takes for one, or None.
        undo: Is given what makes each scheduler pass as before.
        resumed: Whether the optimizers hold the state of a run that was changed by the same numbers.

    Returns:
        One entry for each thing that was changed.
    """
    changes = []
    if learning_rate is not None and not resumed:
        changes += [
            RecipeChange("learning_rate", "rate", written(old), written(new))
            for old, new in scale_learning_rates(trainer, learning_rate)
        ]
    if divide_weight_decay is not None and not resumed:
        for index, optimizer in enumerate(trainer.optimizers):
            changes += divided_weight_decay(optimizer, divide_weight_decay, f"optimizer {index}")
    if decay_faster is not None:
        changes += speed_up_schedules(trainer, module, decay_faster, undo=undo, resumed=resumed)
    return changes


def divided_weight_decay(optimizer: Optimizer, divisor: float, name: str) -> list[RecipeChange]:
    """Divide the weight decay of every parameter group of an optimizer.

    Args:
        optimizer: Changed in place.
        divisor: What to divide by.
        name: What the optimizer is called in the report.

    Returns:
        One entry for each group whose weight decay is not 0.
    """
    changes = []
    for index, group in enumerate(optimizer.param_groups):
        if old := group.get("weight_decay"):
            group["weight_decay"] = old / divisor
            place = f"{name} ({type(optimizer).__name__}), group {index}"
            changes.append(RecipeChange("divide_weight_decay", place, written(old), written(group["weight_decay"])))
    return changes
