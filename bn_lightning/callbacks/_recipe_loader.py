"""Reach a Trainer's training loaders when they are made, and let them shuffle."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from bn_lightning.callbacks._compat import Trainer, namespace_of
from bn_lightning.callbacks._recipe_report import RecipeChange

_ITEM = "shuffle"
Undo = Callable[[Callable[[], None]], object]


def on_training_loaders(trainer: "Trainer", then: Callable[[Any], None], *, undo: Undo) -> Callable[[], None]:
    """Call a function with the training loaders, before the Trainer makes an iterator of them.

    Loaders that were given to `fit` are there at once. Where a module or a data module makes them, its
    `train_dataloader` is replaced on the instance, so that reloaded ones are reached too.

    Args:
        trainer: A Trainer that is setting up to fit.
        then: Gets what `train_dataloader` returned, or `fit` was given.
        undo: Is given what takes the replacement out.

    Returns:
        The same, to be called once no further loaders will be made.
    """
    # Lightning shows it nowhere else before the loaders are iterated; it is not changed.
    source: Any = trainer.fit_loop._data_source
    if not source.is_module():
        then(source.instance)
        return lambda: None
    attributes, original = vars(source.instance), source.instance.train_dataloader
    replaced, wanted = attributes.get("train_dataloader"), True

    def train_dataloader() -> Any:
        loaders = original()
        if wanted:
            then(loaders)
        return loaders

    def restore() -> None:
        nonlocal wanted
        wanted = False
        if attributes.get("train_dataloader") is train_dataloader:
            del attributes["train_dataloader"]
            if replaced is not None:
                attributes["train_dataloader"] = replaced

    attributes["train_dataloader"] = train_dataloader
    undo(restore)
    return restore


def shuffle(trainer: "Trainer", loaders: Any, *, undo: Undo) -> list[RecipeChange]:
    """Let loaders that read their data in order draw a new order in each epoch.

    Args:
        trainer: The Trainer whose loaders they are.
        loaders: A loader or a collection of loaders; their samplers are replaced, or `DistributedSampler` told to
            shuffle, in place.
        undo: Is given what puts the samplers back.

    Returns:
        One entry for each loader whose order changes or cannot be changed; none for those that shuffle already.
    """
    combined: Any = namespace_of(trainer).utilities.combined_loader.CombinedLoader
    flat = loaders.flattened if isinstance(loaders, combined) else combined(loaders).flattened
    changes = []
    for index, loader in enumerate(flat):
        name = f"training loader {index}"
        overfit: float = trainer.overfit_batches  # type: ignore[attr-defined] # set by a connector
        if overfit > 0:
            changes.append(_left(name, "the same batches", "Trainer(overfit_batches=...) asks for them in order"))
        elif not isinstance(loader, DataLoader):
            changes.append(_left(name, type(loader).__name__, "it is no DataLoader; let it shuffle its data itself"))
        elif isinstance(loader.dataset, IterableDataset):
            kind = type(loader.dataset).__name__
            changes.append(_left(name, kind, "an iterable data set has its own order; let it shuffle its shards"))
        else:
            changes += _shuffle_one(loader, name, undo)
    return changes


def _shuffle_one(loader: DataLoader, name: str, undo: Undo) -> list[RecipeChange]:
    # With a batch sampler it is that one's sampler that gives the order.
    batches: Any = loader.batch_sampler
    sampler: Any = loader.sampler if batches is None else getattr(batches, "sampler", batches)
    kind = type(sampler).__name__
    if isinstance(sampler, DistributedSampler):
        if sampler.shuffle:
            return []
        sampler.shuffle = True
        undo(partial(setattr, sampler, "shuffle", False))
        return [RecipeChange(_ITEM, name, f"{kind}(shuffle=False)", f"{kind}(shuffle=True)")]
    if type(sampler) is not SequentialSampler:
        # Random ones shuffle; a sampler of the user's own, or in its batch sampler, may be meant as it is.
        known = type(sampler).__module__ == "torch.utils.data.sampler"
        return [] if known else [_left(name, kind, "a sampler of your own gives the order; let it shuffle")]
    # Both draw range(len(source)), and the source may be shorter than the data set, to leave the rest for validation.
    random = RandomSampler(sampler.data_source, generator=loader.generator)
    for owner in (loader, batches):
        if owner is not None:
            # A DataLoader refuses to be changed for the sake of its iterators; it has none yet.
            object.__setattr__(owner, "sampler", random)
            undo(partial(object.__setattr__, owner, "sampler", sampler))
    return [RecipeChange(_ITEM, name, kind, "RandomSampler")]


def _left(name: str, found: str, reason: str) -> RecipeChange:
    return RecipeChange(_ITEM, name, found, f"left: {reason}", left=True)
