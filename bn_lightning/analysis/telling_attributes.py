"""Which attributes of an object decide what it does, and do not only say what it has been doing."""

import argparse
import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from bn_lightning.analysis.library_modules import is_standard
from bn_lightning.analysis.object_parts import attributes_of

RECORDS = (  # of libraries, and all they hold is told
    SimpleNamespace,
    argparse.Namespace,
    functools.partialmethod,
    functools.cached_property,
    Dataset,  # its targets may be set after it was made
)
_MODULE_STATE = frozenset(vars(nn.Module()))
_ADDRESSES = {"_torchdynamo_wrapper_id"}  # torch.compile numbers what it wrapped by where it lies


def telling_attributes(value: Any, is_foreign: Callable[[str], bool]) -> dict[str, Any]:
    """Attributes that an object is told by: all of a user's object, and of a library's those that it was made with.

    Args:
        value: Any object.
        is_foreign: Whether what a module of this name defines is told by its version.

    Returns:
        Value by name; of a network its layers, buffers and parameters with what its own class keeps.

    Example:
        >>> telling_attributes(SimpleNamespace(rate=0.1), is_foreign=lambda module: True)
        {'rate': 0.1}
    """
    kind, found = type(value), attributes_of(value)
    found = {name: entry for name, entry in found.items() if name not in _ADDRESSES}
    if "__wrapped__" in found:  # what functools.lru_cache made
        return {"__wrapped__": found["__wrapped__"]}
    if isinstance(value, nn.Module):
        parts = {name: found.get(name) for name in ("_modules", "_buffers", "_parameters")}
        return parts | {name: entry for name, entry in found.items() if name not in _MODULE_STATE}
    if not is_foreign(kind.__module__) or isinstance(value, RECORDS) or dataclasses.is_dataclass(value):
        return {name: entry for name, entry in found.items() if not name.startswith("__")}
    # A Trainer's state is not what it was made with.
    if not found or is_standard(kind.__module__) or ".trainer." in kind.__module__:
        return {}
    given = inspect.signature(kind).parameters
    return {name: entry for name, entry in found.items() if name.removeprefix("_") in given}
