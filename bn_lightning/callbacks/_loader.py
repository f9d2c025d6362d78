"""Batches of the training data for use inside a fit, without touching the Trainer's own iterators.

Iterating the Trainer's training loader a second time restarts it: with persistent workers the epoch
then ends early, silently. So every loader is built anew over the same data set, with batches of the
same kind, and read in this process.
"""

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from bn_lightning.callbacks._compat import LightningModule, Trainer, misconfiguration, namespace_of

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
BATCHES_REMEDY = "Give batches= a list, a DataLoader or a function that returns one."


def training_batches(trainer: "Trainer", *, num_batches: int | None = None) -> Iterator[Any]:
    """The training batches of one epoch, as the loader yields them, still on the CPU.

    Data set, collate function, batch size and kind of sampler (the distributed one included) are those of
    training; several loaders are combined in the mode of training. Workers are not used. A shuffling
    sampler draws its order from the global generators, as the data set may: read this inside
    `preserve_random_state`. Generators that samplers own are copied, so that training's stay where they are;
    a generator inside the data set is not. What cannot be read is refused at once, before the first batch is asked for.

    Args:
        trainer: A Trainer that is fitting.
        num_batches: At most so many; otherwise as many as a training epoch has.

    Returns:
        Batches, neither converted nor moved: see `to_training_device`.

    Raises:
        MisconfigurationException: Of the Trainer's namespace, if there is no training data, if it has no length
            and `num_batches` is None, or if it cannot be read a second time.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> trainer = Trainer(
        ...     accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False, limit_train_batches=3,
        ... )
        >>> class Counting(BoringModel):
        ...     def on_train_start(self):
        ...         print(len(list(training_batches(self.trainer))))
        ...     val_dataloader = validation_step = None
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     trainer.fit(Counting())
        3
    """
    data = trainer.train_dataloader
    if data is None:
        raise misconfiguration(trainer, "There is no training data: the Trainer has set up no training dataloader yet.")
    # Not more than training itself may read, as with limit_train_batches or fast_dev_run.
    limit = min(trainer.num_training_batches, math.inf if num_batches is None else num_batches)
    if math.isinf(limit):
        raise misconfiguration(
            trainer,
            "The training data has no length (an iterable data set), so one pass may never end; give num_batches.",
        )
    # The mode of a user's CombinedLoader can be read nowhere else; it is not changed.
    mode = trainer.fit_loop._combined_loader._mode  # type: ignore[union-attr] # there, as its data is
    return _read(loader_of_our_own(trainer, data, mode, remedy=BATCHES_REMEDY), int(limit))


def _read(loader: Any, limit: int) -> Iterator[Any]:
    for index, (batch, _, _) in enumerate(loader):
        if index >= limit:
            return
        yield batch


def loader_of_our_own(trainer: "Trainer", data: Any, mode: str, *, remedy: str) -> Any:
    """A combined loader over the same data sets as `data`, which shares no iterator, worker or generator with it.

    Args:
        trainer: The Trainer whose data it is.
        data: A loader, or a collection of loaders.
        mode: The mode of Lightning's CombinedLoader.
        remedy: What the user is to do where the data cannot be read a second time.

    Returns:
        A CombinedLoader of the Trainer's namespace; it yields batch, index and loader index.

    Raises:
        MisconfigurationException: Of the Trainer's namespace, if the data cannot be read a second time.
    """
    combined: Any = namespace_of(trainer).utilities.combined_loader.CombinedLoader
    loader = combined(data, mode)
    loader.flattened = [_fresh(trainer, part, remedy) for part in loader.flattened]
    return loader


def to_training_device(
    trainer: "Trainer", module: "LightningModule", batch: Any, *, device: torch.device | None = None
) -> Any:
    """Convert and move a batch as training does: precision plugin, batch-transfer hooks, device.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        batch: A batch from `training_batches`.
        device: Where to, if not to the device of training: the module may not be there yet.

    Returns:
        The batch as `training_step` receives it.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    owner: Any = module
    data_module = trainer.datamodule  # type: ignore[attr-defined] # set by a connector
    if data_module is not None:
        plain = namespace_of(trainer).LightningDataModule.on_before_batch_transfer
        if type(data_module).on_before_batch_transfer is not plain:
            owner = data_module
    batch = owner.on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, device=device, dataloader_idx=0)


def _fresh(trainer: "Trainer", loader: Any, remedy: str) -> Any:
    if not isinstance(loader, DataLoader):
        _refuse_one_shot(trainer, loader, remedy)
        return loader
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise misconfiguration(
            trainer,
            f"The training loader is a {type(loader).__name__}, which iterates in its own way and may not be iterated "
            f"twice at once. {remedy}",
        )
    dataset: Any = loader.dataset
    options: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": _own_copy(loader.generator)}
    if isinstance(dataset, IterableDataset):
        _refuse_one_shot(trainer, dataset, remedy)
        options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_sampler is not None:
        _refuse_one_shot(trainer, loader.batch_sampler, remedy)
        options["batch_sampler"] = _own_copy(loader.batch_sampler)
    else:
        _refuse_one_shot(trainer, loader.sampler, remedy)
        options |= {"batch_size": None, "sampler": _own_copy(loader.sampler)}
    return DataLoader(dataset, **options)


def _refuse_one_shot(trainer: "Trainer", source: Any, remedy: str) -> None:
    if hasattr(source, "__next__"):
        raise misconfiguration(
            trainer,
            f"The training data comes from a {type(source).__name__}, an iterator: reading it here would take its "
            f"batches from training. {remedy}",
        )


def _own_copy(part: Any) -> Any:
    """A copy of a sampler, down to the generators it draws from, sharing everything large."""
    if isinstance(part, torch.Generator):
        twin = torch.Generator(device=part.device)
        twin.set_state(part.get_state())
        return twin
    if isinstance(part, GENERATORS):
        return copy.deepcopy(part)
    if part is None or not hasattr(part, "__dict__"):
        return part
    duplicate = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, (Sampler, *GENERATORS)) or _holds_sampler(value):
            setattr(duplicate, name, _own_copy(value))
    return duplicate


def _holds_sampler(value: Any) -> bool:
    # Lightning wraps a user's sampler in a data set of indices when it distributes it.
    return any(isinstance(part, (Sampler, *GENERATORS)) for part in getattr(value, "__dict__", {}).values())
