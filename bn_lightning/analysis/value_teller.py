"""Tells objects of any kind by what they hold and do, the same in every process."""

import enum
import functools
import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bn_lightning.analysis.array_digest import array_digest, parameter_digest
from bn_lightning.analysis.code_digest import code_digest
from bn_lightning.analysis.hidden_parts import way_into
from bn_lightning.analysis.library_modules import is_standard, module_name, own_bases
from bn_lightning.analysis.object_parts import contents, qualified_name
from bn_lightning.analysis.short_digest import short_digest
from bn_lightning.analysis.telling_attributes import telling_attributes

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
DEEPEST = 40
Telling = Callable[[Any], str]


class ValueTeller:
    """Tells what values hold and do, and keeps the users' functions that it met on the way.

    Args:
        is_foreign: Whether what a module of this name defines is told by its version.

    Attributes:
        met: Functions of users' that were met, for `read_elsewhere` to follow.

    Example:
        >>> teller = ValueTeller(is_foreign=lambda module: True)
        >>> teller.tell([1, 2]) == teller.tell([1, 3])
        False
    """

    def __init__(self, is_foreign: Callable[[str], bool]) -> None:
        self.is_foreign = is_foreign
        self.met: list[FunctionType] = []
        self._told: dict[int, tuple[Any, str]] = {}  # the value too, as its address is its own only while it lives

    def tell(self, value: Any, depth: int = DEEPEST) -> str:
        """Digest any object.

        Args:
            value: Any object.
            depth: How many levels further to look into it; below, objects are told by their class.

        Returns:
            The repr of constants, and twelve hexadecimal digits of anything else.
        """
        if type(value) in CONSTANTS:
            return repr(value)
        if not depth:
            return qualified_name(type(value))
        if id(value) in self._told:
            return self._told[id(value)][1]
        self._told[id(value)] = (value, "itself")
        try:
            said = short_digest(json.dumps(self._tell(value, lambda entry: self.tell(entry, depth - 1))).encode())
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
            return ["module", module_name(value)]
        if isinstance(value, property):
            return ["property", inner(value.fget), inner(value.fset), inner(value.fdel)]
        if isinstance(value, functools.partial):
            return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
        if isinstance(value, staticmethod | classmethod):
            return [kind.__name__, inner(value.__func__)]
        if isinstance(value, nn.Parameter):
            return ["parameter", parameter_digest(value)]
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return ["array", array_digest(value, inner)]
        if isinstance(value, enum.Enum):
            return ["enum", inner(kind), value.name, inner(value.value)]
        if isinstance(value, BY_REPR):
            return repr(value)
        if isinstance(value, PurePath):  # where a folder lies differs between machines
            return ["path", value.name if value.is_absolute() else str(value)]
        if isinstance(value, BY_NAME):
            owner = getattr(value, "__self__", None)
            return [qualified_name(value), "" if isinstance(owner, ModuleType | type | None) else inner(owner)]
        attributes = telling_attributes(value, self.is_foreign)
        way = way_into(value)
        return [
            inner(kind),
            self._entries(value, inner),
            {name: inner(entry) for name, entry in attributes.items()},
            [inner(part) for part in way(value)] if way else [],
        ]

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


def _is_told(name: str, entry: Any) -> bool:
    if name.startswith(("_abc_", "__annotate", "__dataclass_")):
        return False
    return not name.startswith("__") or isinstance(entry, FunctionType | staticmethod | classmethod | property)


def _place(entry: Any) -> tuple[str, str]:
    """Where a set's entry comes in line; the order of a set depends on the process."""
    return qualified_name(type(entry)), repr(entry) if type(entry) in CONSTANTS else qualified_name(entry)
