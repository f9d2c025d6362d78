"""Which modules and classes libraries wrote, whose version tells what they do, and which users did."""

import functools
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType


def is_library(module: str) -> bool:
    """Whether a module belongs to a library, or to this package, whose version tells what it does.

    Args:
        module: Its name.

    Returns:
        False for what users wrote: scripts, notebooks and modules of their own.
    """
    return module.partition(".")[0] == "bn_lightning" or is_installed(module)


def is_installed(module: str) -> bool:
    """Whether a module was installed, so that a version tells what it does.

    Args:
        module: Its name.

    Returns:
        True for the standard library, what lies in a folder of installed packages, and what has no file.
    """
    if module == "__main__":  # in a notebook it has no file
        return False
    source = _source(module)
    return source is None or is_installed_at(source)


def is_users_to_import(module: str) -> bool:
    """Whether a module that may not be imported yet is a user's own; it is looked for and not imported.

    Args:
        module: Its name.

    Returns:
        True for what is found outside the folders of installed packages.
    """
    top = module.partition(".")[0]
    spec = None if top == "bn_lightning" else importlib.util.find_spec(top)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    files = [place for place in places if place not in (None, "built-in", "frozen", "namespace")]
    return bool(files) and not is_installed_at(str(files[0]))


def is_installed_at(path: str) -> bool:
    """Whether a file or folder lies where packages are installed, or is Python's own.

    Args:
        path: Absolute.

    Returns:
        False for what users wrote.
    """
    return _is_under(path, ("stdlib", "platstdlib", "purelib", "platlib"))


@functools.cache
def _is_under(source: str, kinds: tuple[str, ...]) -> bool:
    path = Path(source)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return "purelib" in kinds
    roots = [Path(sysconfig.get_paths()[kind]) for kind in kinds]
    return any(path.is_relative_to(root) or path.resolve().is_relative_to(root.resolve()) for root in roots)


def _source(module: str) -> str | None:
    found = getattr(sys.modules.get(module), "__dict__", {}).get("__file__")  # a lazy module's getattr would load it
    return None if found is None else str(found)


def is_standard(module: str) -> bool:
    """Whether a module is Python's own.

    Args:
        module: Its name.

    Returns:
        True for the standard library and what has no file.
    """
    source = _source(module)
    return module != "__main__" and (source is None or _is_under(source, ("stdlib", "platstdlib")))


def module_name(module: ModuleType) -> str:
    """Name of a module, the same on every platform.

    Args:
        module: Any module.

    Returns:
        Its name; `os.path` for the module that stands behind it on this platform.

    Example:
        >>> import os
        >>> module_name(os.path)
        'os.path'
    """
    return "os.path" if module is os.path else module.__name__


def own_bases(kind: type) -> list[type]:
    """Classes that users wrote among those a class inherits from, itself included.

    Args:
        kind: A class.

    Returns:
        The classes, nearest first; none for a library's class. This package counts as one where it is installed, and
        not where it is worked on.

    Example:
        >>> own_bases(dict)
        []
    """
    return [base for base in kind.__mro__ if not is_installed(base.__module__)]
