"""What the modules that users wrote do, as processes that train one study must agree on it.

A process keeps a module as it was when it was first imported, so one that lives on, a notebook, a worker of a cluster,
may hold an older version of a file that was edited since.
"""

import dis
import os
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

from bn_lightning.analysis.code_digest import code_digest
from bn_lightning.analysis.library_modules import is_installed_at, is_library
from bn_lightning.analysis.worker_process import WorkerError

PLAIN = (str, int, float, bool, type(None))

_digests: dict[str, tuple[ModuleType, str]] = {}


def own_code() -> dict[str, str]:
    """Digest every module of users' own that this process has imported from a file.

    Modules whose source is changed on import, as pytest does, are left out: other processes have them unchanged.

    Returns:
        Digest by the module's name.
    """
    return {name: module_digest(module) for name, module in list(sys.modules.items()) if _is_own(name, module)}


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
            "study: a file was changed after one of the two had imported it. Restart the workers of the cluster, or, "
            "where the study was started from a notebook, its kernel, and run the same again. Finished cells are kept."
        )


def module_digest(module: ModuleType) -> str:
    """Digest the functions, classes and plain values that a module defines.

    Args:
        module: The module.

    Returns:
        Twelve hexadecimal digits, the same in every process. Names that its functions assign to count as its state, and
        are left out.
    """
    functions = dict(_functions(module.__name__, vars(module), ""))
    assigned = {name for function in functions.values() for name in _assigned_globals(function)}
    said = {name: code_digest(function.__code__) for name, function in functions.items()}
    values = {
        name: repr(value)
        for name, value in vars(module).items()
        if type(value) in PLAIN and name not in assigned and not name.startswith("__")
    }
    return sha256(repr((sorted(said.items()), sorted(values.items()))).encode()).hexdigest()[:12]


def _is_own(name: str, module: Any) -> bool:
    loader = getattr(module, "__dict__", {}).get("__loader__")  # a lazy module's getattr would load it
    return type(loader) is SourceFileLoader and name != "__main__" and not is_library(name)


def _functions(module: str, names: Mapping[str, Any], within: str) -> Iterator[tuple[str, FunctionType]]:
    for name, value in list(names.items()):
        place = f"{within}{name}"
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        for number, part in enumerate(parts):
            if isinstance(part, FunctionType) and part.__module__ == module:
                yield f"{place}/{number}", part
        if isinstance(value, type) and value.__module__ == module and place.count(".") < 5:
            yield from _functions(module, vars(value), f"{place}.")


def _assigned_globals(function: FunctionType) -> Iterator[str]:
    for instruction in dis.get_instructions(function.__code__):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            yield str(instruction.argval)
