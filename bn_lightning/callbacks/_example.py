"""An example to trace a LightningModule with: its own `example_input_array`, else one training batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration, namespace_of
from bn_lightning.callbacks._loader import loader_of_our_own, to_training_device
from bn_lightning.surgery.forward import device_of
from bn_lightning.surgery.sandbox import preserve_random_state

_REMEDY = "Set example_input_array on the LightningModule to a batch of inputs."


@dataclass(frozen=True)
class Example:
    """How to run a module once.

    Args:
        entry: The method to call: "forward" or "training_step".
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    entry: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def example_of(trainer: "Trainer", module: "LightningModule") -> Example:
    """Find an example for `module`: its `example_input_array`, else the first training batch.

    The batch comes through the user's own transfer hooks. Loaders with workers are read without
    starting any, and no random state is consumed.

    Args:
        trainer: The Trainer whose fit is being set up or runs.
        module: Its LightningModule.

    Returns:
        The example.

    Raises:
        MisconfigurationException: If there is neither an example nor training data to take one from.
    """
    array = module.example_input_array
    device = device_of(module)
    if array is not None:
        moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), array)
        if isinstance(moved, dict):
            return Example("forward", (), moved)
        return Example("forward", moved if isinstance(moved, tuple) else (moved,), {})
    with preserve_random_state():
        batch = _first_training_batch(trainer)
    batch = to_training_device(trainer, module, batch, device=device)
    return Example("training_step", (batch, 0), {})


@contextmanager
def muted_logging(module: "LightningModule") -> Iterator[None]:
    """Let `log` and `log_dict` of this module do nothing, as where no loop is there to take the values.

    Args:
        module: The LightningModule.

    Yields:
        Nothing.
    """
    names = ("log", "log_dict")
    saved = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            vars(module)[name] = _ignore
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(saved)


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass


def _first_training_batch(trainer: "Trainer") -> Any:
    # A loader passed to `fit` is reachable nowhere else before training starts.
    source = trainer.fit_loop._data_source
    if source.instance is None or not source.is_defined():
        raise misconfiguration(trainer, f"There is no training data to take an example batch from. {_REMEDY}")
    loaders = source.dataloader()
    mode = "max_size_cycle"
    if isinstance(loaders, namespace_of(trainer).utilities.combined_loader.CombinedLoader):
        loaders, mode = loaders.iterables, loaders._mode
    for batch, _, _ in loader_of_our_own(trainer, loaders, mode, remedy=_REMEDY):
        return batch
    raise misconfiguration(trainer, f"The training data hold no batch to trace with. {_REMEDY}")
