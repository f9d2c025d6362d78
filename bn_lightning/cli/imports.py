"""Says in one line what is wrong with an import path on the command line, where the parser says it once a type."""

import importlib
import importlib.util
import os
import sys
from typing import Any

IMPORTED = ("--model", "--data", "--own-views", "--forward", "--loss-fn")  # options that take import paths


def check_import_paths(arguments: list[str]) -> None:
    """Check that what is named by import paths exists.

    Args:
        arguments: As typed.

    Raises:
        ValueError: If a module does not exist, cannot be imported, or holds no such name.
    """
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in IMPORTED:
            continue
        path = value if equals else "".join(arguments[place + 1 : place + 2])
        # Without a dot, or as a dict in braces, it is the parser's to judge.
        if "." in path and path.replace(".", "").isidentifier():
            _check(flag, path)


def _check(flag: str, path: str) -> None:
    parts = path.split(".")
    if not _exists(parts[0]):
        folders = [folder or os.getcwd() for folder in sys.path]
        raise ValueError(
            f"There is no module {parts[0]!r}, which {flag} {path} names. It was looked for in "
            f"{', '.join(dict.fromkeys(folders))}. Call the command in the folder that holds it, or name that "
            "folder in PYTHONPATH."
        )
    name = parts[0]
    here = _imported(name, flag, path)
    for part in parts[1:]:
        if not hasattr(here, part) and hasattr(here, "__path__") and _exists(f"{name}.{part}"):
            _imported(f"{name}.{part}", flag, path)
        if not hasattr(here, part):
            from bn_lightning.analysis.names import unknown_name  # late, as below

            raise unknown_name(f"name in {name} (from {flag} {path})", part, _public(here))
        here, name = getattr(here, part), f"{name}.{part}"


def _exists(module: str) -> bool:
    # The spec of a module that runs as a script, `__main__`, cannot be asked for.
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _imported(module: str, flag: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        # Imported late: `--help` must not take the seconds that loading the analysis does.
        from bn_lightning.analysis.import_failure import import_failure

        raise import_failure(f"The module {module!r}, which {flag} {path} names,", error) from error


def _public(module: Any) -> list[str]:
    """Classes and functions that a module defines itself, or all its names where it defines none."""
    names = [name for name in vars(module) if not name.startswith("_")]
    home = getattr(module, "__name__", "")
    return [name for name in names if getattr(getattr(module, name), "__module__", None) == home] or names
