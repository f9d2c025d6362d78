"""An example to trace a LightningModule with: its own `example_input_array`, else one training batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration, namespace_of
from bn_lightning.surgery.forward import device_of
from bn_lightning.surgery.sandbox import preserve_random_state

_REMEDY = "Set example_input_array on the LightningModule to a batch of inputs"


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
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.strategy.batch_to_device(batch, device=device)
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
        raise misconfiguration(trainer, f"There is no training data to take an example batch from. {_REMEDY}.")
    loaders = source.dataloader()
    combined = namespace_of(trainer).utilities.combined_loader.CombinedLoader
    mode = "max_size_cycle"
    if isinstance(loaders, combined):
        loaders, mode = loaders.iterables, loaders._mode
    try:
        if not pytree.tree_leaves(loaders, is_leaf=_is_loader):
            raise StopIteration
        batches = pytree.tree_map(_first_batch, loaders, is_leaf=_is_loader)
    except StopIteration as error:
        raise misconfiguration(trainer, f"The training data hold no batch to trace with. {_REMEDY}.") from error
    except _OneShotError as error:
        raise misconfiguration(
            trainer,
            f"The training data ({error}) can be read only once, so taking an example would lose a batch. {_REMEDY}.",
        ) from error
    return pytree.tree_leaves(batches, is_leaf=_is_loader)[0] if mode == "sequential" else batches


class _OneShotError(Exception):
    pass


def _is_loader(value: Any) -> bool:
    return isinstance(value, DataLoader) or not isinstance(value, dict | list | tuple)


def _first_batch(loader: Any) -> Any:
    if not isinstance(loader, DataLoader):
        iterator = iter(loader)
        if iterator is loader:
            raise _OneShotError(type(loader).__name__)
        return next(iterator)
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        if iter(dataset) is dataset:
            raise _OneShotError(type(dataset).__name__)
        single = DataLoader(
            dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn, drop_last=loader.drop_last
        )
        return next(iter(single))
    with _preserve_generators(loader):
        if loader.batch_sampler is None:
            return loader.collate_fn(dataset[next(iter(loader.sampler))])
        indices = next(iter(loader.batch_sampler))
    samples = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
    return loader.collate_fn(samples)


@contextmanager
def _preserve_generators(loader: DataLoader[Any]) -> Iterator[None]:
    holders = (loader, loader.sampler, loader.batch_sampler)
    generators = {id(g): g for g in (getattr(holder, "generator", None) for holder in holders) if g is not None}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
