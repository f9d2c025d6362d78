"""Says where a module named on the command line was looked for, which the parser leaves out."""

import importlib.util
import os
import sys

IMPORTED = ("--model", "--data", "--own-views", "--forward", "--loss-fn")  # options that take import paths


def check_import_paths(arguments: list[str]) -> None:
    """Check that the modules named by import paths exist; they are not imported yet.

    Args:
        arguments: As typed.

    Raises:
        ValueError: If one does not.
    """
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in IMPORTED:
            continue
        path = value if equals else "".join(arguments[place + 1 : place + 2])
        module = path.partition(".")[0]
        # Without a dot, or as a dict in braces, it is the parser's to judge.
        if "." in path and module.isidentifier() and not _exists(module):
            folders = [folder or os.getcwd() for folder in sys.path]
            raise ValueError(
                f"There is no module {module!r}, which {flag} {path} names. It was looked for in "
                f"{', '.join(dict.fromkeys(folders))}. Call the command in the folder that holds it, or name that "
                "folder in PYTHONPATH."
            )


def _exists(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ValueError:  # of a module without a spec
        return True
