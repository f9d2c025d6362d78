"""An example to trace a LightningModule with: its own `example_input_array`, else one training batch."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration, namespace_of
from bn_lightning.callbacks._loader import loader_of_our_own, to_training_device
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.probes.copied_batch import copied_batch
from bn_lightning.probes.objective_loss import step_arguments, training_step_of
from bn_lightning.surgery.forward import Forward, call_model, device_of
from bn_lightning.surgery.sandbox import sandbox

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
    return examples_of(trainer, module)[0]


def entry_of(module: "LightningModule", entry: str | None = None, *, num_examples: int = 1) -> str:
    """What is run to see a module at work.

    Args:
        module: The LightningModule.
        entry: "forward" or "training_step"; None where the user did not say.
        num_examples: How many training batches the user wants to run.

    Returns:
        The given entry, else "forward" for one `example_input_array`, else "training_step".
    """
    if entry is not None:
        return entry
    return "forward" if module.example_input_array is not None and num_examples == 1 else "training_step"


def examples_of(
    trainer: "Trainer", module: "LightningModule", *, entry: str | None = None, num_examples: int = 1
) -> list[Example]:
    """Find examples for `module`: its `example_input_array`, or the first training batches.

    Args:
        trainer: The Trainer whose fit is being set up or runs.
        module: Its LightningModule.
        entry: "forward" on `example_input_array`, or "training_step" on batches; by default the first
            where there is such an array and a single example is asked for.
        num_examples: How many training batches to take; fewer where an epoch has fewer.

    Returns:
        The examples, at least one.

    Raises:
        MisconfigurationException: If there is neither an example nor training data to take one from.
    """
    device = device_of(module)
    if entry_of(module, entry, num_examples=num_examples) == "forward":
        array = module.example_input_array
        if array is None:
            raise misconfiguration(
                trainer, f"{type(module).__name__}.forward was to be run, and there is nothing to run it on. {_REMEDY}"
            )
        # Copies, because a tensor that the module holds counts as a constant of it, not as an input.
        moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, copy=True), array)
        if isinstance(moved, dict):
            return [Example("forward", (), moved)]
        return [Example("forward", moved if isinstance(moved, tuple) else (moved,), {})]
    batches = first_training_batches(trainer, module, num_examples)
    return [Example("training_step", step_arguments(module, batch, index), {}) for index, batch in enumerate(batches)]


def run_like(entry: str, *, of_training: bool) -> Forward:
    """How batches are run by the method that a module was traced by.

    Args:
        entry: "forward" or "training_step".
        of_training: Whether they are what ``training_step`` takes; a tensor that the user gave is an input to
            ``forward``.

    Returns:
        A forward. ``training_step`` gets copies, and runs batches of names that ``forward`` does not take too.
    """

    def forward(module: Any, batch: Any) -> Any:
        by_step = entry == "training_step" and (of_training or not isinstance(batch, torch.Tensor))
        if by_step or (of_training and not _takes_names(module, batch)):
            return training_step_of(module)(module, copied_batch(batch))
        return call_model(module, batch)

    return forward


def _takes_names(module: Any, batch: Any) -> bool:
    try:
        inspect.signature(module.forward).bind(**batch) if isinstance(batch, Mapping) else None
    except TypeError:
        return False
    return True


def first_training_batches(trainer: "Trainer", module: "LightningModule", count: int) -> list[Any]:
    """The first batches of the training data as `training_step` receives them, on the module's device.

    Args:
        trainer: The Trainer whose fit is being set up or runs.
        module: Its LightningModule.
        count: How many; fewer come where an epoch has fewer.

    Returns:
        The batches, at least one.

    Raises:
        MisconfigurationException: If there are no training data, or none that can be read a second time.
    """
    # A loader passed to `fit` is reachable nowhere else before training starts.
    source = trainer.fit_loop._data_source
    if source.instance is None or not source.is_defined():
        raise misconfiguration(trainer, f"There is no training data to take an example batch from. {_REMEDY}")
    # The user's hooks that make and move batches draw random numbers, and may count or keep statistics.
    with no_trace(module), sandbox(module):
        loaders = source.dataloader()
        mode = "max_size_cycle"
        if isinstance(loaders, namespace_of(trainer).utilities.combined_loader.CombinedLoader):
            loaders, mode = loaders.iterables, loaders._mode
        loader = loader_of_our_own(trainer, loaders, mode, remedy=_REMEDY)
        device = device_of(module)
        batches = [to_training_device(trainer, module, batch, device=device) for batch, _, _ in islice(loader, count)]
    if not batches:
        raise misconfiguration(trainer, f"The training data hold no batch to trace with. {_REMEDY}")
    return batches
