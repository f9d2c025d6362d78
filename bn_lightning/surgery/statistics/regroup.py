"""Merge small batches into larger ones, whatever a batch is made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

REMEDY = (
    'Leave out regroup= (and estimator="fixed_point", which merges too), or let the data loader give larger batches.'
)


def regrouped(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Merge consecutive batches while they hold no more than `samples` together.

    Tensors are joined along axis 0; lists, tuples, named tuples, mappings and dataclasses part by part; lists of
    strings one behind the other; other values must be equal. A batch that is larger, or whose tensors do not fit
    those before it (padded to another length, another type), starts a new group. No sample is lost.

    Args:
        batches: Batches, each with the samples along axis 0 of every tensor.
        samples: Most samples of a merged batch.

    Yields:
        Batches of the same make.

    Raises:
        TypeError: If a batch holds no tensor, tensors that do not agree on the number of samples, or what is neither
            tensor, number, string nor a container of these.

    Example:
        >>> batches = [(torch.ones(2, 3), ["a", "b"]), (torch.zeros(1, 3), ["c"]), (torch.ones(2, 3), ["d", "e"])]
        >>> [(x.shape, names) for x, names in regrouped(batches, 4)]
        [(torch.Size([3, 3]), ['a', 'b', 'c']), (torch.Size([2, 3]), ['d', 'e'])]
    """
    group: list[Any] = []
    held, layout = 0, None
    for batch in batches:
        size, found = samples_of(batch), _layout(batch)
        if group and (held + size > samples or found != layout):
            yield _merged(group)
            group, held = [], 0
        group.append(batch)
        held, layout = held + size, found
    if group:
        yield _merged(group)


def samples_of(batch: Any) -> int:
    """The number of samples of a batch.

    Args:
        batch: A batch.

    Returns:
        The length of axis 0, on which all its tensors agree.

    Raises:
        TypeError: If it holds no tensor, or they do not agree.

    Example:
        >>> samples_of({"x": torch.ones(5, 2), "y": torch.ones(5)})
        5
    """
    tensors = list(_tensors(batch))
    sizes = {len(tensor) if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensors"
        raise TypeError(
            f"Batches of type {type(batch).__name__} cannot be merged: one holds {shapes}, which do not tell one "
            f"number of samples. {REMEDY}"
        )
    (size,) = sizes
    return int(size or 0)


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    else:
        for inner in _parts(part) or ():
            yield from _tensors(inner)


def _parts(part: Any) -> list[Any] | None:
    """What a container holds; None for anything else."""
    if isinstance(part, Mapping):
        return list(part.values())
    if isinstance(part, list | tuple):
        return list(part)
    if is_dataclass(part) and not isinstance(part, type):
        return [getattr(part, field.name) for field in fields(part)]
    return None


def _layout(part: Any) -> Any:
    """Equal for batches that can be merged."""
    if isinstance(part, Tensor):
        return part.shape[1:], part.dtype, part.device
    if _is_names(part):
        return type(part), str
    inner = _parts(part)
    if inner is None:
        if part is None or isinstance(part, str | bytes | int | float):
            return part
        raise TypeError(
            f"A batch with a {type(part).__name__} in it cannot be merged with others: only tensors, numbers, strings "
            f"and containers of these can. {REMEDY}"
        )
    keys = tuple(part) if isinstance(part, Mapping) else ()
    return type(part), keys, [_layout(value) for value in inner]


def _is_names(part: Any) -> bool:
    return isinstance(part, list | tuple) and bool(part) and all(isinstance(name, str) for name in part)


def _merged(group: Sequence[Any]) -> Any:
    first = group[0]
    if len(group) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(group))
    if _is_names(first):
        return type(first)(name for part in group for name in part)
    if isinstance(first, Mapping):
        return {key: _merged([part[key] for part in group]) for key in first}
    inner = [_merged(values) for values in zip(*(_parts(part) or () for part in group), strict=True)]
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*inner)
    if isinstance(first, list | tuple):
        return type(first)(inner)
    if inner:
        return replace(first, **{field.name: value for field, value in zip(fields(first), inner, strict=True)})
    return first
