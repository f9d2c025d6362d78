"""What users' functions read of the globals of their own modules."""

from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from bn_lightning.analysis.library_modules import is_library
from bn_lightning.analysis.short_digest import short_digest
from bn_lightning.analysis.value_teller import ValueTeller


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
        >>> import json
        >>> read_elsewhere([len, lambda: json.dumps])
        {}
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
            found[name] = short_digest(teller.tell(value).encode())
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
