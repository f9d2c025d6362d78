"""Lightning's callbacks that average weights: which there are, and a look at the averaged weights in between."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def weight_averaging_of(trainer: "Trainer") -> Any:
    """The callback that keeps averaged weights beside those of training and validates them (EMA too).

    Args:
        trainer: The Trainer.

    Returns:
        Lightning's `WeightAveraging` or a subclass, of either name of the package; None where there is none.
    """
    return _callback_named(trainer, "WeightAveraging")


def stochastic_averaging_of(trainer: "Trainer") -> Any:
    """The callback that puts averaged weights into the module at the end of training, and validates none before.

    Args:
        trainer: The Trainer.

    Returns:
        Lightning's `StochasticWeightAveraging` or a subclass; None where there is none.
    """
    return _callback_named(trainer, "StochasticWeightAveraging")


@contextmanager
def averaged_weights(trainer: "Trainer", module: "LightningModule", averaging: Any) -> Iterator[None]:
    """Let the module hold the averaged weights and buffers until the block is left, as in a validation.

    What is written to its buffers inside belongs to the average, and is in its checkpoints.

    Args:
        trainer: The Trainer.
        module: The module.
        averaging: What `weight_averaging_of` returned; for None nothing happens.

    Yields:
        Nothing.
    """
    if averaging is None:
        yield
        return
    # Its public hooks are the one way in that subclasses keep: they exchange the two sets of values.
    averaging.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        averaging.on_validation_epoch_end(trainer, module)


def _callback_named(trainer: "Trainer", name: str) -> Any:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    for callback in callbacks:
        if name in (kind.__name__ for kind in type(callback).__mro__):
            return callback
    return None
