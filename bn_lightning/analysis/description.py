"""What any object is, in plain values, the same in every process."""

import dataclasses
import functools
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.array_digest import array_digest
from bn_lightning.analysis.code_digest import code_digest
from bn_lightning.analysis.hidden_parts import way_into
from bn_lightning.analysis.library_modules import is_library, own_bases
from bn_lightning.analysis.object_parts import attributes_of, contents, qualified_name
from bn_lightning.analysis.read_elsewhere import read_elsewhere
from bn_lightning.analysis.value_digest import class_digest, value_digest

PLAIN = (str, int, float, bool, type(None))
HOLDERS = (dict, OrderedDict, Counter, MappingProxyType, list, tuple, range, bytes, set, frozenset)  # and nothing else
TOLD = (PurePath, np.ndarray, np.generic, Tensor, torch.dtype, torch.device)  # by their value, though not plain


def describe(value: Any) -> Any:
    """Say what a value is in JSON types, without memory addresses, the same in every process.

    Functions are told by their qualified name, their defaults, what they captured and, because an edited function keeps
    its name, a digest of their code; classes by their qualified name and, unless they are a library's, a digest of all
    that they hold; arrays and tensors by a digest of their values; other objects by their class, their plain attributes
    and a digest of the rest, in which weights that look drawn count by their shape and absolute paths by their last
    name. Random generators count by what seeded them, if it shows; Python's own `random.Random` does not show it.
    Globals that users' functions and methods name are followed, see `read_elsewhere`; what a function reads from files,
    or finds by a name made at run time, is not.

    Args:
        value: Any object.

    Returns:
        A value made of dicts, lists and plain values.

    Example:
        >>> describe(functools.partial(dict, lr=0.5))
        {'call': 'builtins.dict', 'with': {'lr': 0.5}}
    """
    return _describe(value, depth=6)


def _describe(value: Any, depth: int) -> Any:
    try:
        if isinstance(value, PLAIN):
            return value
        return _describe_further(value, depth) if depth else {"object": _called(value), "state": value_digest(value)}
    except Exception:  # users' and libraries' objects may raise whatever they like where they are looked into
        return {"object": qualified_name(type(value)), "state": value_digest(value)}


def _called(value: Any) -> str:
    return qualified_name(value if callable(value) else type(value))


def _describe_further(value: Any, depth: int) -> Any:
    inner = functools.partial(_describe, depth=depth - 1)
    if isinstance(value, functools.partial):
        said = {"call": inner(value.func), "with": {name: inner(v) for name, v in sorted(value.keywords.items())}}
        return {**said, "args": [inner(argument) for argument in value.args]} if value.args else said
    if isinstance(value, (Mapping, Sequence, set, frozenset)):
        held = _describe_entries(value, inner)
        if type(value) in HOLDERS:
            return held
        return {"object": qualified_name(type(value)), "holds": held, "state": value_digest(value)}
    if isinstance(value, type):
        return _describe_class(value)
    if isinstance(value, (np.ndarray, np.generic, Tensor)) and not isinstance(value, nn.Parameter):
        return array_digest(value, value_digest)
    if isinstance(value, (PurePath, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (FunctionType, MethodType)):
        owner = getattr(value, "__self__", None)
        return {**_describe_function(value, inner), **({} if owner is None else {"of": inner(owner)})}
    if isinstance(value, nn.Module):
        return {"module": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)), "state": value_digest(value)}
    if way_into(value) and is_library(type(value).__module__):
        return {"object": qualified_name(type(value)), "state": value_digest(value)}
    attributes = attributes_of(value)
    plain = {name: inner(entry) for name, entry in attributes.items() if _is_plain(entry)}
    said = {"object": qualified_name(type(value)), **({"attributes": plain} if plain else {})}
    if len(plain) < len(attributes) or not attributes:
        said["state"] = value_digest(value)
    return said if is_library(type(value).__module__) else {**said, "type": _describe_class(type(value))}


def _describe_entries(value: Any, inner: Any) -> Any:
    if isinstance(value, Mapping):
        return {_describe_key(name): inner(entry) for name, entry in value.items()}
    told = [inner(entry) for entry in value]
    return sorted(told, key=repr) if isinstance(value, (set, frozenset)) else told


def _describe_key(name: Any) -> str:
    """By its text where it is plain; the text of other objects may hold their address."""
    entries = name if isinstance(name, tuple) else (name,)
    plain = all(isinstance(entry, PLAIN) for entry in entries)
    return str(name) if plain else f"{_called(name)} {value_digest(name)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(entry) for entry in value.values())
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, str):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, (*PLAIN, *TOLD, type)) or dataclasses.is_dataclass(value)


def _describe_class(value: type) -> Any:
    """A class by its name and, where it is a user's own, a digest of what it does and holds."""
    if not own_bases(value):
        return qualified_name(value)
    digest, read = class_digest(value)
    return {"class": qualified_name(value), "code": digest, **({"reads": read} if read else {})}


def _reads(functions: Iterable[Any]) -> dict[str, Any]:
    read = read_elsewhere(functions)
    return {"reads": read} if read else {}


def _describe_function(function: Any, inner: Any) -> Any:
    said: dict[str, Any] = {"call": qualified_name(function), "code": code_digest(function.__code__)}
    said.update(_reads([function]))
    given = {**dict(enumerate(function.__defaults__ or ())), **(function.__kwdefaults__ or {})}
    if given:
        said["defaults"] = {str(name): inner(entry) for name, entry in given.items()}
    if "__wrapped__" in vars(function):
        said["wraps"] = inner(vars(function)["__wrapped__"])
    if function.__closure__:
        captured = zip(function.__code__.co_freevars, function.__closure__, strict=True)
        said["captured"] = {name: inner(contents(cell)) for name, cell in captured}
    return said
