"""What users' functions read of the globals of their own modules."""

import contextlib
import dis
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from bn_lightning.analysis.library_modules import is_library, is_users_to_import, module_name
from bn_lightning.analysis.short_digest import short_digest
from bn_lightning.analysis.value_teller import ValueTeller


def read_elsewhere(functions: Iterable[Any]) -> dict[str, str]:
    """Digest the globals that users' functions name, and those that these name in turn.

    Whatever users' own modules hold is told by what it holds and does, through `module.name` too: functions, classes,
    numbers, tensors, objects. What libraries made is told by its name, as their version tells what it does, and their
    objects by what they were made with; their modules too are told by name, as one may be imported in place of another
    (`import cupy as np`). Users' modules that a function imports itself are followed too, and imported for that. A name
    counts wherever it stands, so a global whose name is also an attribute's may be digested in vain.

    Args:
        functions: Functions to start from.

    Returns:
        Digest by qualified name, in alphabetical order; of a library's module its name.

    Example:
        >>> import json as encoder
        >>> write = lambda: encoder.dumps
        >>> write.__module__ = "__main__"  # as in a script
        >>> read_elsewhere([len, write])
        {'__main__.encoder': 'json'}
    """
    found: dict[str, str] = {}
    teller = ValueTeller(is_library)
    todo = [function for function in functions if isinstance(function, FunctionType)]
    seen = {function.__code__ for function in todo}
    while todo:
        function = todo.pop()
        if is_library(str(function.__module__)):
            continue
        for name, value in _named(function):
            found[name] = (
                module_name(value) if isinstance(value, ModuleType) else short_digest(teller.tell(value).encode())
            )
        todo += [entry for entry in teller.met if entry.__code__ not in seen]
        seen |= {entry.__code__ for entry in teller.met}
        teller.met.clear()
    return dict(sorted(found.items()))


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Qualified name and value of every global that a function may read, and of what it imports itself."""
    names, passed = sorted(_names(function.__code__)), {str(function.__module__)}
    yield from _held(function.__globals__, function.__module__, names, passed)
    for module in _imports(function.__code__, str(function.__globals__.get("__package__") or "")):
        if module.__name__ not in passed:
            passed.add(module.__name__)
            yield from _held(vars(module), module.__name__, names, passed)


def _held(namespace: Mapping[str, Any], module: str, names: list[str], passed: set[str]) -> Iterator[tuple[str, Any]]:
    """What a module holds under these names, and what users' modules among it hold under them in turn."""
    for name in names:
        if name not in namespace or name.startswith("__"):
            continue
        value = namespace[name]
        if not isinstance(value, ModuleType) or is_library(value.__name__):
            yield f"{module}.{name}", value
        elif value.__name__ not in passed:
            passed.add(value.__name__)
            yield from _held(vars(value), value.__name__, names, passed)


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _imports(code: CodeType, package: str) -> Iterator[ModuleType]:
    """Users' modules that code imports as it runs."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for place, step in enumerate(steps):
        if step.opname != "IMPORT_NAME":
            continue
        dots, wanted = "." * (steps[place - 2].argval or 0), steps[place - 1].argval or ()
        with contextlib.suppress(Exception):  # what cannot be imported here cannot be followed
            name = importlib.util.resolve_name(dots + step.argval, package)
            if is_users_to_import(name):
                yield __import__(name, fromlist=wanted or ("*",))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant, package)
