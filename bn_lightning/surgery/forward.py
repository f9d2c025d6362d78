"""What running a model on a batch means when nobody says: the one place that decides it."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


def call_model(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Run `model` once on `batch`.

    Without `forward`, the batch is moved to the model's device and

    ==================  ==================
    a batch that is     is run as
    ==================  ==================
    a tensor            ``model(batch)``
    a list or tuple     ``model(batch[0])``, as for (input, target) pairs
    a mapping           ``model(**batch)``
    ==================  ==================

    Args:
        model: The module to run, in whatever mode it is.
        batch: One batch, as a data loader yields it.
        forward: ``forward(model, batch)`` runs the model instead; the batch arrives as it is, on the
            device where it is.

    Returns:
        What the model, or `forward`, returned.

    Raises:
        TypeError: If the batch is none of these and `forward` is not given.
        ValueError: If the batch is an empty list or tuple.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> call_model(model, (torch.ones(4, 2), torch.zeros(4))).shape
        torch.Size([4, 1])
        >>> call_model(model, {"x": torch.ones(3, 2)}, forward=lambda model, batch: model(batch["x"])).shape
        torch.Size([3, 1])
    """
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Tensor):
        return model(move_to(batch, device_of(model)))
    if isinstance(batch, list | tuple):
        if not batch:
            raise ValueError(
                f"An empty {type(batch).__name__} came as a batch, so there is no input to give to "
                f"{type(model).__name__}; look at the data loader's collate function."
            )
        return model(move_to(batch[0], device_of(model)))
    if isinstance(batch, Mapping):
        return model(**move_to(dict(batch), device_of(model)))
    raise TypeError(
        f"Cannot tell how to run {type(model).__name__} on a batch of type {type(batch).__name__}: only a tensor, "
        "a list, a tuple or a mapping has a default. Say how with forward=lambda model, batch: ...."
    )


def move_to(batch: Any, device: torch.device | None) -> Any:
    """The same batch with every tensor in it on `device`.

    Lists, tuples, named tuples and dicts are rebuilt; an object with a ``to`` method is asked to move
    itself; everything else is returned as it is.

    Args:
        batch: A batch, nested as it likes.
        device: Where the tensors are to be; None leaves them where they are.

    Returns:
        The moved batch; tensors already there are not copied.

    Example:
        >>> move_to({"x": [torch.ones(1), "label"]}, torch.device("meta"))["x"]
        [tensor(..., device='meta', size=(1,)), 'label']
    """
    if device is None:
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move_to(part, device) for part in batch)
    if isinstance(batch, dict):
        return {key: move_to(part, device) for key, part in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    return batch


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the model's first parameter or buffer; None for a model without either.

    Args:
        model: Any module.

    Returns:
        The device, or None.

    Example:
        >>> device_of(nn.Linear(1, 1)), device_of(nn.ReLU())
        (device(type='cpu'), None)
    """
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return None if tensor is None else tensor.device
