"""Run a LightningModule on a training batch as training does, but for the optimizer."""

import inspect
from itertools import count
from typing import TYPE_CHECKING, Any

from bn_lightning.callbacks._compat import misconfiguration
from bn_lightning.callbacks._loader import to_training_device
from bn_lightning.probes.objective_loss import step_arguments
from bn_lightning.surgery.forward import Forward

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def as_in_training(trainer: "Trainer", given: Forward | None) -> Forward:
    """A forward that moves and converts a batch as training does, under its precision, and runs it.

    Args:
        trainer: The Trainer.
        given: Runs the module on the moved batch; by default its ``training_step``, with indices from 0.

    Returns:
        The forward.
    """
    indices = count()

    def forward(module: Any, batch: Any) -> Any:
        batch = to_training_device(trainer, module, batch)
        with trainer.precision_plugin.train_step_context():
            if given is not None:
                return given(module, batch)
            try:
                return module.training_step(*step_arguments(module, batch, next(indices)))
            except RuntimeError as error:
                error.add_note(
                    "This came up while BatchNormRecalibration ran training_step without gradients; "
                    "BatchNormRecalibration(forward=...) runs the module another way."
                )
                raise

    return forward


FORWARD = "BatchNormRecalibration(forward=lambda module, batch: module(batch[0]))"


def refuse_unusable_step(trainer: "Trainer", module: "LightningModule", *, remedy: str = FORWARD) -> None:
    """See that ``training_step`` can be run for its forward alone.

    Args:
        trainer: The Trainer.
        module: The module.
        remedy: How the user says what is to be run instead.

    Raises:
        MisconfigurationException: Of the Trainer's namespace, if it steps the optimizer or takes an iterator.
    """
    reason = ""
    if not module.automatic_optimization:
        reason = "with manual optimization it steps the optimizer"
    elif "dataloader_iter" in inspect.signature(module.training_step).parameters:
        reason = "it takes a dataloader_iter instead of a batch"
    if reason:
        raise misconfiguration(
            trainer,
            f"training_step of {type(module).__name__} cannot be run for the statistics, because {reason}. Say how to "
            f"run the module: {remedy}.",
        )
