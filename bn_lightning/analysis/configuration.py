"""What a cell was run with, in plain values, and a hash of it that changes when any of them does."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import PurePath
from platform import python_version
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.code_digest import (
    array_digest,
    class_digest,
    code_digest,
    own_bases,
    read_elsewhere,
    value_digest,
)
from bn_lightning.analysis.library_modules import is_library
from bn_lightning.analysis.object_parts import attributes_of, contents, qualified_name
from bn_lightning.analysis.study import Arm, Problem

PLAIN = (str, int, float, bool, type(None))
TOLD = (PurePath, np.ndarray, np.generic, Tensor, torch.dtype, torch.device)  # by their value, though not plain


def describe(value: Any) -> Any:
    """Say what a value is in JSON types, without memory addresses, the same in every process.

    Functions are told by their qualified name, their defaults, what they captured and, because an edited function keeps
    its name, a digest of their code; classes by their qualified name and, unless they are a library's, a digest of all
    that they hold; arrays and tensors by a digest of their values; other objects by their class, their plain attributes
    and a digest of the rest, in which weights that look drawn count by their shape and absolute paths by their last
    name. Globals that users' functions and methods name are followed, see `read_elsewhere`; what a function reads from
    files, or finds by a name made at run time, is not.

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
    if isinstance(value, Mapping):
        return {str(name): inner(entry) for name, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((inner(entry) for entry in value), key=repr)
    if isinstance(value, Sequence):
        return [inner(entry) for entry in value]
    if isinstance(value, type):
        return _describe_class(value)
    if isinstance(value, (np.ndarray, np.generic, Tensor)) and not isinstance(value, nn.Parameter):
        return array_digest(value)
    if isinstance(value, (PurePath, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (FunctionType, MethodType)):
        owner = getattr(value, "__self__", None)
        return {**_describe_function(value, inner), **({} if owner is None else {"of": inner(owner)})}
    if isinstance(value, nn.Module):
        return {"module": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)), "state": value_digest(value)}
    attributes = attributes_of(value)
    plain = {name: inner(entry) for name, entry in attributes.items() if _is_plain(entry)}
    said = {"object": qualified_name(type(value)), **({"attributes": plain} if plain else {})}
    if len(plain) < len(attributes) or not attributes:
        said["state"] = value_digest(value)
    return said if is_library(type(value).__module__) else {**said, "type": _describe_class(type(value))}


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


def cell_configuration(problem: Problem, arm: Arm) -> dict[str, Any]:
    """What decides what a cell of `arm` computes, as far as `describe` can tell; not the seed and the versions.

    Args:
        problem: What is trained.
        arm: The arm; its callbacks are made once to be described.

    Returns:
        JSON types only.
    """
    budget = arm.budget or problem.budget
    return {
        "problem": problem.name,
        "module": describe(problem.module),
        "data": describe(problem.data),
        "options": describe(dict(problem.options)),
        "monitor": problem.monitor,
        "mode": problem.mode,
        "max_steps": budget.max_steps,
        "eval_every": budget.eval_every,
        "trainer_options": describe(dict(problem.trainer_options)),
        "arm": arm.name,
        "arm_options": describe(dict(arm.options)),
        "factors": describe(dict(arm.factors)),
        "callbacks": [describe(callback) for callback in arm.callbacks()],
    }


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Hash a configuration.

    Args:
        configuration: JSON types only.

    Returns:
        Sixteen hexadecimal digits, the same for equal configurations in every process.

    Example:
        >>> configuration_hash({"a": 1, "b": 2}) == configuration_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(configuration, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what decides a cell's numbers.

    Returns:
        Version by distribution: python, bn-lightning, torch, pytorch-lightning, torchmetrics and numpy.
    """
    from bn_lightning._version import __version__

    found = {"python": python_version(), "bn-lightning": __version__}
    for name in ("torch", "pytorch-lightning", "lightning", "torchmetrics", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
