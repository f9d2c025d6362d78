"""Digests of users' code, which change when what it does changes and not when it is only written otherwise."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

CONSTANTS = (str, bytes, int, float, complex, bool, type(None))


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


def is_library(module: str) -> bool:
    """Whether a module belongs to a library, or to this package, whose version tells what it does.

    Args:
        module: Its name.

    Returns:
        False for what users wrote: scripts, notebooks and modules of their own.
    """
    return module.partition(".")[0] == "bn_lightning" or _is_installed(module)


def _is_installed(module: str) -> bool:
    if module == "__main__":  # in a notebook it has no file
        return False
    source = getattr(sys.modules.get(module), "__file__", None)
    return source is None or "site-packages" in source or source.startswith(sys.base_prefix)


def own_methods(kind: type) -> list[Any]:
    """Functions that users' classes hold, those they inherit from other classes of users' included.

    Args:
        kind: A class.

    Returns:
        The functions, in one order; none for a library's class. This package counts as one where it is installed, and
        not where it is worked on.
    """
    own = [base for base in kind.__mro__ if not _is_installed(base.__module__)]
    return [
        function
        for base in own
        for _, entry in sorted(vars(base).items())
        if hasattr(function := getattr(entry, "__func__", entry), "__code__")
    ]


def read_elsewhere(functions: Iterable[Any]) -> dict[str, str]:
    """Digest the globals that users' functions name, and those that these name in turn.

    Functions, classes and constants (numbers, text, and lists, tuples and dicts of them) of users' own modules are
    followed, through `module.name` too; libraries are not, as their version tells what they do. A name counts wherever
    it stands, so a global whose name is also an attribute's may be digested in vain.

    Args:
        functions: Functions to start from.

    Returns:
        Digest by qualified name, in alphabetical order.

    Example:
        >>> read_elsewhere([len, lambda: sys.path])
        {}
    """
    found: dict[str, str] = {}
    todo = [function for function in functions if isinstance(function, FunctionType)]
    seen = {function.__code__ for function in todo}
    while todo:
        function = todo.pop()
        if is_library(function.__module__):
            continue
        for name, value in _named(function):
            inner = _functions_of(value)
            if inner:
                found[name] = _short("".join(code_digest(entry.__code__) for entry in inner))
            elif _is_constant(value):
                found[name] = _short(repr(value))
            todo += [entry for entry in inner if entry.__code__ not in seen]
            seen |= {entry.__code__ for entry in inner}
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


def _functions_of(value: Any) -> list[FunctionType]:
    value = getattr(value, "__wrapped__", value)  # what functools.wraps and lru_cache wrap
    if isinstance(value, type):
        return [] if is_library(value.__module__) else [f for f in own_methods(value) if isinstance(f, FunctionType)]
    return [value] if isinstance(value, FunctionType) and not is_library(value.__module__) else []


def _is_constant(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_constant, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_constant, value))
    return isinstance(value, CONSTANTS)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
