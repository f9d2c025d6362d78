"""What the modules that users wrote do, as processes that train one study must agree on it.

A process keeps a module as it was when it was first imported, so one that lives on, a notebook, a worker of a cluster,
may hold an older version of a file that was edited since.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from bn_lightning.analysis.code_digest import code_digest
from bn_lightning.analysis.library_modules import is_installed_at, is_library
from bn_lightning.analysis.short_digest import short_digest
from bn_lightning.analysis.source_constants import source_names
from bn_lightning.analysis.worker_process import WorkerError

PLAIN = (str, int, float, bool, type(None), bytes, complex)
DECORATORS = 9  # one above the other, of which the functions are looked at

_digests: dict[str, tuple[ModuleType, str]] = {}


def own_code() -> dict[str, str]:
    """Digest every module of users' own that this process has imported from a file.

    Modules whose source is changed on import, as pytest does, are left out: other processes have them unchanged.

    Returns:
        Digest by the module's name.
    """
    return {name: module_digest(module) for name, module in _own_modules().items()}


def own_folders() -> tuple[str, ...]:
    """Folders on the path of this process that hold no installed packages.

    Returns:
        The folders, absolute, in their order.
    """
    folders = [os.path.abspath(folder) for folder in sys.path]  # an empty one is that of the process
    return tuple(dict.fromkeys(folder for folder in folders if not is_installed_at(folder)))


def check_same_code(expected: Mapping[str, str]) -> None:
    """Check that this process has imported the same versions of modules as another one.

    Each is looked at once, when it is new here, as what a module holds may change while it is used.

    Args:
        expected: What `own_code` gave in the process that handed out the work.

    Raises:
        WorkerError: If it has not; the message names the modules.
    """
    other = []
    for name, digest in expected.items():
        module = sys.modules.get(name)
        if module is None or not _is_own(name, module):
            continue
        if name not in _digests or _digests[name][0] is not module:
            _digests[name] = (module, module_digest(module))
        if _digests[name][1] != digest:
            other.append(f"{name} ({module.__file__})")
    if other:
        raise WorkerError(
            f"A worker, in {os.getcwd()}, has other versions of {', '.join(other)} than the process that started the "
            "study: a file was changed after one of the two had imported it, or one of them set something in it from "
            "elsewhere. Restart the workers of the cluster, or, where the study was started from a notebook, its "
            "kernel, hand over as options what is set from elsewhere, and run the same again. Finished cells are kept."
        )


def module_digest(module: ModuleType) -> str:
    """Digest the functions of a module and its classes, and the plain values that its text alone decides.

    Args:
        module: The module.

    Returns:
        Twelve hexadecimal digits, the same in every process. Left out is what differs between healthy processes: values
        that are computed, as from the time, the process or its environment, and names that functions set later.
    """
    return _digest(module, _is_plain)


def worker_mark() -> dict[str, str]:
    """Digest users' modules with the lists and dicts that are written out in them too, as they are now.

    Returns:
        Digest by the module's name, which tells one state of this process from another and means nothing elsewhere:
        what lists and dicts hold may change while they are used.
    """
    return {name: _digest(module, lambda value: True) for name, module in _own_modules().items()}


def _digest(module: ModuleType, counts: Callable[[Any], bool]) -> str:
    names = source_names(_source(module))
    said = {}
    for place, value in _held(module.__name__, vars(module), ""):
        if place.rpartition(".")[2] in names.state:
            continue
        for number, function in enumerate(_functions(value, module.__name__)):
            defaults = (function.__defaults__ or (), tuple(sorted((function.__kwdefaults__ or {}).items())))
            told = repr(defaults) if place in names.defaults and _is_plain(defaults) else ""
            said[f"{place}/{number}"] = code_digest(function.__code__) + told
        if place in names.constants and counts(value):
            said[place] = repr(value)
    return short_digest(repr(sorted(said.items())).encode())


def _own_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in list(sys.modules.items()) if _is_own(name, module)}


def _is_own(name: str, module: Any) -> bool:
    loader = getattr(module, "__dict__", {}).get("__loader__")  # a lazy module's getattr would load it
    return type(loader) is SourceFileLoader and name != "__main__" and not is_library(name)


def _source(module: ModuleType) -> bytes:
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return b""


def _held(module: str, names: Mapping[str, Any], within: str) -> Iterator[tuple[str, Any]]:
    for name, value in list(names.items()):
        place = f"{within}{name}"
        yield place, value
        if isinstance(value, type) and value.__module__ == module and place.count(".") < 5:
            yield from _held(module, vars(value), f"{place}.")


def _functions(value: Any, module: str) -> Iterator[FunctionType]:
    """Functions of a module that a value of it consists of, also behind decorators."""
    if isinstance(value, property):
        parts = [value.fget, value.fset, value.fdel]
    else:
        parts = [value.__func__ if isinstance(value, staticmethod | classmethod) else value]
    for part in parts:
        for _ in range(DECORATORS):
            if isinstance(part, FunctionType) and part.__module__ == module:
                yield part
            part = getattr(part, "__dict__", {}).get("__wrapped__")


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else type(value) in PLAIN
