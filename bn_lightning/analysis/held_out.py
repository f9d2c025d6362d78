"""A validation split for tuning: a share of the training data that is held out, of any data module."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from bn_lightning.analysis.loader_settings import loader_settings
from bn_lightning.analysis.study import Problem

SHARE = 0.1
SPLIT_SEED = 20150211  # fixed: every tuning run holds out the same samples


def held_out_problem(problem: Problem, *, share: float = SHARE) -> Problem:
    """The problem trained on a part of its training data and evaluated on the rest; its own test set is not read.

    The same samples are held out in every run, chosen at random once. They come through the training data set, so
    with its augmentation.

    Args:
        problem: Its data module has one training loader, a plain DataLoader over a data set with a length, which
            shuffles or keeps the order.
        share: Of the training data, between 0 and 1.

    Returns:
        A problem named `<name>_held_out`; its metric keeps its name, as the module logs it.

    Raises:
        ValueError: If the share is out of range; once data are asked for, if they cannot be split like that.

    Example:
        >>> from bn_lightning.analysis.problems.digits import digits_problem
        >>> data = held_out_problem(digits_problem()).data()
        >>> data.setup()
        >>> len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)
        (1164, 129)
    """
    if not 0 < share < 1:
        raise ValueError(f"The share of the training data that is held out lies between 0 and 1, not {share}.")
    return replace(problem, name=f"{problem.name}_held_out", data=functools.partial(_split, problem.data, share))


def _split(make: Callable[[], Any], share: float) -> Any:
    data = make()
    train_dataloader = data.train_dataloader

    # Plain functions: Lightning asks for their code.
    def kept() -> DataLoader:
        loader, chosen = _halves(train_dataloader(), share, type(data).__name__)
        batches: Any = loader.batch_sampler
        shuffle = isinstance(batches.sampler, RandomSampler)
        return _like(loader, chosen[0], shuffle=shuffle, drop_last=batches.drop_last, generator=loader.generator)

    def held_out() -> DataLoader:
        loader, chosen = _halves(train_dataloader(), share, type(data).__name__)
        return _like(loader, chosen[1])

    data.train_dataloader, data.val_dataloader = kept, held_out
    return data


def _halves(loader: Any, share: float, owner: str) -> tuple[DataLoader, tuple[list[int], list[int]]]:
    problem = _cannot(loader)
    if problem is not None:
        raise ValueError(
            f"A share of the training data of {owner} cannot be held out for tuning: {problem}. Tune with "
            "tune_learning_rate(study, on=...), where `on` is a problem whose data are split by you."
        )
    # A source shorter than the data set leaves samples out: they are neither trained on nor held out.
    number = len(loader.batch_sampler.sampler.data_source)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    held = max(1, round(share * number))
    if held >= number:
        raise ValueError(f"{owner} has {number} training samples, too few to hold {share:.0%} of them out for tuning.")
    return loader, (sorted(order[held:]), sorted(order[:held]))


def _cannot(loader: Any) -> str | None:
    if type(loader) is not DataLoader:
        return f"its train_dataloader gives a {type(loader).__qualname__}, not one plain DataLoader"
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return f"{type(loader.dataset).__qualname__} has no length and no indices"
    if type(loader.batch_sampler) is not BatchSampler:
        return f"batches are drawn by a {type(loader.batch_sampler).__qualname__}"
    # Where batches are given, the loader's own sampler is another one, which nothing reads.
    sampler = loader.batch_sampler.sampler
    # A sampler's own indices would point into the whole data set; these two draw range(len(source)).
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )
    return None if plain else f"samples are drawn by a {type(sampler).__qualname__} with settings of its own"


def _like(loader: DataLoader, indices: list[int], **options: Any) -> DataLoader:
    batches: Any = loader.batch_sampler
    settings = {**loader_settings(loader), **options}
    return DataLoader(Subset(loader.dataset, indices), batch_size=batches.batch_size, **settings)
