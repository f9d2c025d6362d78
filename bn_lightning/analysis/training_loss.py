"""The training loss as the module computed it, from what Lightning hands to callbacks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def training_loss(trainer: Any, pl_module: Any, outputs: Any) -> Tensor | None:
    """The loss of the batch that was just trained on, in the module's own unit.

    Lightning hands on the loss that it took the gradient of: divided by `accumulate_grad_batches`, but for a module
    that optimizes manually.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The module that is trained.
        outputs: What `on_train_batch_end` got.

    Returns:
        The loss, detached and on its device, since reading it would wait for the device; None for a batch whose
        `training_step` returned none.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> trainer, module = SimpleNamespace(accumulate_grad_batches=4), SimpleNamespace(automatic_optimization=True)
        >>> training_loss(trainer, module, {"loss": torch.tensor(0.5)})
        tensor(2.)
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor):
        return None
    return loss.detach() * (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
