"""What counts as the loss of a model on a batch, and how many samples a batch holds."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LossFn = Callable[[Any, Any], Any]
"""``loss_fn(model, batch)`` returns the loss, a scalar tensor or a mapping that has it under "loss"."""

_REMEDY = "Pass loss_fn=lambda module, batch: ... that returns the loss of a batch."


def batch_samples(batch: Any) -> int:
    """The longest leading axis of the tensors in a batch.

    Args:
        batch: Any nest of tensors.

    Returns:
        The number of samples; 1 for a batch without a tensor that has axes.

    Example:
        >>> import torch
        >>> batch_samples((torch.zeros(8, 3), {"label": torch.zeros(8)}))
        8
    """
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return max((len(leaf) for leaf in leaves), default=1)


def training_step_of(model: nn.Module) -> LossFn:
    """A LightningModule's ``training_step`` as a function of module and batch.

    Args:
        model: The module.

    Returns:
        The function; it passes the batch index 0 where one is taken.

    Raises:
        TypeError: If there is no ``training_step``.
        ValueError: If it optimizes manually or takes an iterator.

    Example:
        >>> class Lit(nn.Module):
        ...     def training_step(self, batch, batch_idx):
        ...         return batch.sum() + batch_idx
        >>> import torch
        >>> training_step_of(Lit())(Lit(), torch.ones(2)).item()
        2.0
    """
    step: Any = getattr(model, "training_step", None)
    if not callable(step):
        raise TypeError(f"{type(model).__name__} has no training_step to take the loss from. {_REMEDY}")
    if not getattr(model, "automatic_optimization", True):
        raise ValueError(
            f"training_step of {type(model).__name__} optimizes manually, so running it would step the optimizers. "
            f"{_REMEDY}"
        )
    if "dataloader_iter" in inspect.signature(step).parameters:
        raise ValueError(
            f"training_step of {type(model).__name__} takes a dataloader_iter instead of a batch. {_REMEDY}"
        )
    return lambda module, batch: module.training_step(*step_arguments(module, batch))


def step_arguments(model: Any, batch: Any, index: int = 0) -> tuple[Any, ...]:
    """What a ``training_step`` is called with.

    Args:
        model: The module.
        batch: The batch.
        index: Its index, for a step that takes one.

    Returns:
        Positional arguments.

    Example:
        >>> class Lit(nn.Module):
        ...     def training_step(self, batch):
        ...         return batch
        >>> step_arguments(Lit(), "batch")
        ('batch',)
    """
    parameters = inspect.signature(model.training_step).parameters.values()
    takes_index = len(parameters) > 1 or any(part.kind is part.VAR_POSITIONAL for part in parameters)
    return (batch, index) if takes_index else (batch,)


def scalar_loss(returned: Any, model: nn.Module, *, with_graph: bool) -> Tensor:
    """The loss in what a loss function returned.

    Args:
        returned: A tensor of one element, or a mapping that has it under "loss".
        model: The module, for messages.
        with_graph: Whether it is to be differentiated.

    Returns:
        The loss, without axes.

    Raises:
        TypeError: If there is no tensor.
        ValueError: If it is not one number, or cannot be differentiated.

    Example:
        >>> import torch
        >>> scalar_loss({"loss": torch.tensor([2.0])}, nn.Identity(), with_graph=False)
        tensor(2.)
    """
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor):
        found = (
            f"a mapping without a tensor 'loss' (keys {list(returned)})"
            if isinstance(returned, Mapping)
            else f"a {type(returned).__name__}"
        )
        raise TypeError(f"The loss of {type(model).__name__} came back as {found}. {_REMEDY}")
    if loss.numel() != 1:
        raise ValueError(
            f"The loss of {type(model).__name__} has shape {tuple(loss.shape)}; it must be one number. {_REMEDY}"
        )
    if with_graph and not loss.requires_grad:
        raise independent_loss(model)
    return loss.reshape(())


def independent_loss(model: nn.Module) -> ValueError:
    """The error for a loss that none of the parameters chosen has part in.

    Args:
        model: The module, for the message.

    Returns:
        The error, to be raised.
    """
    return ValueError(
        f"The loss of {type(model).__name__} depends on none of the parameters it is differentiated by: they are "
        "not used, or the loss is detached. Choose others with parameters=, or return the loss with its graph."
    )
