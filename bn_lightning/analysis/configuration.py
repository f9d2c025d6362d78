"""What a cell was run with, in plain values, and a hash of it that changes when any of them does."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import PurePath
from platform import python_version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.code_digest import code_digest, is_library, own_methods, read_elsewhere
from bn_lightning.analysis.study import Arm, Problem

PLAIN = (str, int, float, bool, type(None))
TOLD = (PurePath, np.ndarray, np.generic, Tensor, torch.dtype, torch.device)  # by their value, though not plain


def describe(value: Any) -> Any:
    """Say what a value is in JSON types, without memory addresses, the same in every process.

    Functions are told by their qualified name, their defaults, what they captured and, because an edited function keeps
    its name, a digest of their code; classes by their qualified name and, unless they are a library's, a digest of
    their methods; arrays and tensors by a digest of their values; other objects by their class and their plain
    attributes. Globals that users' functions and methods name are followed, see `read_elsewhere`; what a function reads
    from files, or finds by a name made at run time, is not.

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
    inner = functools.partial(_describe, depth=depth - 1)
    if isinstance(value, PLAIN):
        return value
    if depth == 0:
        return _name(value if callable(value) else type(value))
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
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        return {"array": hashlib.sha256(array.tobytes()).hexdigest()[:12], "shape": list(array.shape)}
    if isinstance(value, (PurePath, torch.dtype, torch.device)):
        return str(value)
    if hasattr(value, "__code__"):
        owner = getattr(value, "__self__", None)
        return {**_describe_function(value, inner), **({} if owner is None else {"of": inner(owner)})}
    if isinstance(value, nn.Module) and not hasattr(value, "trainer"):
        return {"module": repr(value)}
    attributes = _attributes(value)
    plain = {name: inner(entry) for name, entry in attributes.items() if _is_plain(entry)}
    said = {"object": _name(type(value)), **({"attributes": plain} if plain else {})}
    return said if is_library(type(value).__module__) else {**said, "type": _describe_class(type(value))}


def _attributes(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(sorted(getattr(value, "__dict__", {}).items()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(entry) for entry in value.values())
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, str):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, (*PLAIN, *TOLD, type)) or dataclasses.is_dataclass(value)


def _describe_class(value: type) -> Any:
    """A class by its name and, where it is a user's own, a digest of its methods' code."""
    methods = own_methods(value)
    if not methods:
        return _name(value)
    digests = "".join(code_digest(method.__code__) for method in methods)
    said = {"class": _name(value), "code": hashlib.sha256(digests.encode()).hexdigest()[:12]}
    return {**said, **_reads(methods)}


def _reads(functions: Iterable[Any]) -> dict[str, Any]:
    read = read_elsewhere(functions)
    return {"reads": read} if read else {}


def _describe_function(function: Any, inner: Any) -> Any:
    said: dict[str, Any] = {"call": _name(function), "code": code_digest(function.__code__)}
    said.update(_reads([function]))
    given = {**dict(enumerate(function.__defaults__ or ())), **(function.__kwdefaults__ or {})}
    if given:
        said["defaults"] = {str(name): inner(entry) for name, entry in given.items()}
    if function.__closure__:
        captured = zip(function.__code__.co_freevars, function.__closure__, strict=True)
        said["captured"] = {name: inner(_contents(cell)) for name, cell in captured}
    return said


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: a name that was never bound
        return None


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


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
