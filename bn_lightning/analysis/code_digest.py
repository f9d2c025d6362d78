"""Digests of users' code, which change when what it does changes and not when it is only written otherwise."""

import argparse
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.library_modules import is_installed, is_library, is_standard
from bn_lightning.analysis.object_parts import attributes_of, contents, qualified_name

CONSTANTS = (str, bytes, int, float, complex, bool, type(None), type(...))
BY_REPR = (
    slice,
    range,
    date,
    time,
    timedelta,
    Decimal,
    Fraction,
    re.Pattern,
    np.dtype,
    torch.dtype,
    torch.device,
)
BY_NAME = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, MemberDescriptorType, np.ufunc)
RECORDS = (  # of the standard library, and all they hold is told
    SimpleNamespace,
    argparse.Namespace,
    functools.partialmethod,
    functools.cached_property,
)
DEEPEST = 40
Telling = Callable[[Any], str]


def code_digest(code: CodeType) -> str:
    """Digest what a function does; constants that are code themselves are followed.

    Args:
        code: The function's code.

    Returns:
        Twelve hexadecimal digits, the same in every process of one Python version.

    Example:
        >>> code_digest((lambda x: x + 1).__code__) == code_digest((lambda x: x + 2).__code__)
        False
    """
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        # A frozenset's repr depends on the hash seed of the process.
        text = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
        parts.append(code_digest(constant) if isinstance(constant, CodeType) else repr(text))
    return _short("\n".join(parts))


def own_bases(kind: type) -> list[type]:
    """Classes that users wrote among those a class inherits from, itself included.

    Args:
        kind: A class.

    Returns:
        The classes, nearest first; none for a library's class. This package counts as one where it is installed, and
        not where it is worked on.
    """
    return [base for base in kind.__mro__ if not is_installed(base.__module__)]


def class_digest(kind: type) -> tuple[str, dict[str, str]]:
    """Digest what a user's class does, with what it holds and inherits from other classes of users'.

    Args:
        kind: A class.

    Returns:
        Twelve hexadecimal digits of its methods, properties and attributes; and what `read_elsewhere` says of them.
    """
    teller = _Teller(is_installed)
    return teller.tell(kind), read_elsewhere(teller.met)


def value_digest(value: Any) -> str:
    """Digest any object by what it holds, and by the code of what users wrote in it.

    Args:
        value: Any object.

    Returns:
        Twelve hexadecimal digits, the same in every process. An object that gives no insight is told by its class.
    """
    teller = _Teller(is_installed)
    told = teller.tell(value)
    return _short(json.dumps([told, read_elsewhere(teller.met)]))


def array_digest(value: Any) -> dict[str, Any]:
    """Digest an array or a tensor.

    Args:
        value: A NumPy array or number, or a tensor.

    Returns:
        The digest of its bytes, its shape and its dtype.
    """
    said = {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Tensor):
        if value.is_meta:
            return said
        flat = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
        flat = flat.resolve_conj().resolve_neg().contiguous().reshape(-1)
        value = flat.view(torch.uint8).numpy()  # NumPy has no bfloat16
    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:  # its bytes are addresses
        return {**said, "array": value_digest(array.tolist())}
    return {**said, "array": hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()[:12]}


def read_elsewhere(functions: Iterable[Any]) -> dict[str, str]:
    """Digest the globals that users' functions name, and those that these name in turn.

    Whatever users' own modules hold is told by what it holds and does, through `module.name` too: functions, classes,
    numbers, tensors, objects. What libraries made is told by its name, as their version tells what it does, and their
    objects by what they were made with. A name counts wherever it stands, so a global whose name is also an attribute's
    may be digested in vain.

    Args:
        functions: Functions to start from.

    Returns:
        Digest by qualified name, in alphabetical order.

    Example:
        >>> read_elsewhere([len, lambda: json.dumps])
        {}
    """
    found: dict[str, str] = {}
    teller = _Teller(is_library)
    todo = [function for function in functions if isinstance(function, FunctionType)]
    seen = {function.__code__ for function in todo}
    while todo:
        function = todo.pop()
        if is_library(str(function.__module__)):
            continue
        for name, value in _named(function):
            found[name] = _short(teller.tell(value))
        todo += [entry for entry in teller.met if entry.__code__ not in seen]
        seen |= {entry.__code__ for entry in teller.met}
        teller.met.clear()
    return dict(sorted(found.items()))


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Qualified name and value of every global that a function may read."""
    names = sorted(_names(function.__code__))
    for name in names:
        if name not in function.__globals__ or name.startswith("__"):
            continue
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield f"{function.__module__}.{name}", value
        elif not is_library(value.__name__):
            yield from ((f"{value.__name__}.{n}", vars(value)[n]) for n in names if n in vars(value) and n[:2] != "__")


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


class _Teller:
    """Tells what values hold and do, and keeps the users' functions that it met on the way."""

    def __init__(self, is_foreign: Callable[[str], bool]) -> None:
        self.is_foreign = is_foreign  # whether a module is told by its version
        self.met: list[FunctionType] = []
        self._told: dict[int, tuple[Any, str]] = {}  # the value too, as its address is its own only while it lives

    def tell(self, value: Any, depth: int = DEEPEST) -> str:
        if type(value) in CONSTANTS:
            return repr(value)
        if not depth:
            return qualified_name(type(value))
        if id(value) in self._told:
            return self._told[id(value)][1]
        self._told[id(value)] = (value, "itself")
        try:
            said = _short(json.dumps(self._tell(value, lambda entry: self.tell(entry, depth - 1))))
        except Exception:  # users' and libraries' objects may raise whatever they like where they are looked into
            said = qualified_name(type(value))
        self._told[id(value)] = (value, said)
        return said

    def _tell(self, value: Any, inner: Telling) -> Any:
        kind = type(value)
        if isinstance(value, type):
            return self._class(value, inner)
        if isinstance(value, FunctionType):
            return self._function(value, inner)
        if isinstance(value, MethodType):
            return ["method", inner(value.__func__), inner(value.__self__)]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, property):
            return ["property", inner(value.fget), inner(value.fset), inner(value.fdel)]
        if isinstance(value, functools.partial):
            return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
        if isinstance(value, staticmethod | classmethod):
            return [kind.__name__, inner(value.__func__)]
        if isinstance(value, nn.Parameter):
            return ["parameter", _parameter(value)]
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return ["array", array_digest(value)]
        if isinstance(value, enum.Enum):
            return ["enum", inner(kind), value.name, inner(value.value)]
        if isinstance(value, BY_REPR):
            return repr(value)
        if isinstance(value, PurePath):  # where a folder lies differs between machines
            return ["path", value.name if value.is_absolute() else str(value)]
        if isinstance(value, BY_NAME):
            return qualified_name(value)
        return [inner(kind), self._entries(value, inner), self._attributes(value, inner)]

    def _entries(self, value: Any, inner: Telling) -> Any:
        if isinstance(value, dict | MappingProxyType) or (
            isinstance(value, Mapping) and not is_standard(type(value).__module__)
        ):
            return sorted([inner(name), inner(entry)] for name, entry in value.items())
        if isinstance(value, set | frozenset):
            return sorted(inner(entry) for entry in sorted(value, key=_place))
        if isinstance(value, list | tuple | deque):
            return [inner(entry) for entry in value]
        return next((kind.__repr__(value) for kind in (str, bytes, int, float, complex) if isinstance(value, kind)), "")

    def _attributes(self, value: Any, inner: Telling) -> Any:
        """Attributes by name: all of a user's object, and of a library's those that it was made with."""
        kind, found = type(value), attributes_of(value)
        if "__wrapped__" in found:  # what functools.lru_cache made
            return inner(found["__wrapped__"])
        if isinstance(value, nn.Module):
            parts = {name: inner(found.get(name)) for name in ("_modules", "_buffers")}
            weights = {name: inner(entry) for name, entry in (found.get("_parameters") or {}).items()}
            own = {name: inner(entry) for name, entry in found.items() if name not in _MODULE_STATE}
            return [parts, weights, own]
        if not self.is_foreign(kind.__module__) or isinstance(value, RECORDS) or dataclasses.is_dataclass(value):
            return {name: inner(entry) for name, entry in found.items() if not name.startswith("__")}
        # A Trainer's state is not what it was made with.
        if not found or is_standard(kind.__module__) or ".trainer." in kind.__module__:
            return {}
        given = inspect.signature(kind).parameters
        return {name: inner(entry) for name, entry in found.items() if name.removeprefix("_") in given}

    def _class(self, kind: type, inner: Telling) -> Any:
        said: list[Any] = [qualified_name(kind)]
        if self.is_foreign(kind.__module__):
            return said
        for base in own_bases(kind):
            said.append([qualified_name(parent) for parent in base.__bases__])
            said += [[name, inner(entry)] for name, entry in sorted(vars(base).items()) if _is_told(name, entry)]
        return said

    def _function(self, function: FunctionType, inner: Telling) -> Any:
        captured = [contents(cell) for cell in function.__closure__ or ()]
        if self.is_foreign(str(function.__module__)):
            own = [entry for entry in captured if isinstance(entry, FunctionType | type)]
            return [qualified_name(function), *(inner(entry) for entry in own if not self.is_foreign(entry.__module__))]
        # What functools.wraps made in a library bears the name and module of what it wraps.
        wrapper = self.is_foreign(function.__globals__.get("__name__", "__main__"))
        if not wrapper:
            self.met.append(function)
        return [
            function.__code__.co_qualname if wrapper else code_digest(function.__code__),
            inner(function.__defaults__),
            inner(function.__kwdefaults__),
            [inner(entry) for entry in captured],
            inner(vars(function).get("__wrapped__")),
        ]


_MODULE_STATE = frozenset(vars(nn.Module()))


def _parameter(weights: nn.Parameter) -> Any:
    """By its shape, as weights that are drawn differ between processes, and by value where nothing looks drawn."""
    values = weights.detach()
    constant = not values.is_meta and (not values.ndim or (values.numel() > 1 and bool((values == values.min()).all())))
    said = array_digest(values) if constant else [list(values.shape), str(values.dtype)]
    return [said, weights.requires_grad]


def _is_told(name: str, entry: Any) -> bool:
    if name.startswith(("_abc_", "__annotate", "__dataclass_")):
        return False
    return not name.startswith("__") or isinstance(entry, FunctionType | staticmethod | classmethod | property)


def _place(entry: Any) -> tuple[str, str]:
    """Where a set's entry comes in line; the order of a set depends on the process."""
    return qualified_name(type(entry)), repr(entry) if type(entry) in CONSTANTS else qualified_name(entry)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
