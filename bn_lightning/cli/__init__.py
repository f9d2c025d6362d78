"""The command `bn-lightning`: typed functions, whose arguments jsonargparse turns into flags.

Exit status: 0 done, 1 some cells or measurements failed (they are named), 2 bad usage, 130 interrupted.
"""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bn_lightning.cli.ensembles import ensemble
from bn_lightning.cli.imports import check_import_paths
from bn_lightning.cli.measurements import measure
from bn_lightning.cli.models import plan, recalibrate
from bn_lightning.cli.parsing import parse
from bn_lightning.cli.saying import BAD_USAGE, INTERRUPTED, complain
from bn_lightning.cli.studies import compare, demo, report

COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "plan": plan,
    "compare": compare,
    "measure": measure,
    "recalibrate": recalibrate,
    "ensemble": ensemble,
    "report": report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its arguments; by default those of the process.

    Returns:
        Exit status: 0 done, 1 some cells or measurements failed, 2 bad usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        # A command, unlike `python -m`, does not look for --model=my.LitNet in the folder it is called from.
        sys.path.insert(0, os.getcwd())
    with _one_line_warnings():
        try:
            check_import_paths(arguments)
            command, options = parse(arguments, COMMANDS)
            if "typed" in inspect.signature(COMMANDS[command]).parameters:
                options["typed"] = arguments
            return COMMANDS[command](**options)
        except KeyboardInterrupt as error:
            complain(f"\n{error or 'Interrupted.'}")
            return INTERRUPTED
        except SystemExit as error:  # how the parser ends, after its help or its message
            return error.code if isinstance(error.code, int) else BAD_USAGE
        except Exception as error:
            if not _is_bad_usage(error):
                raise
            complain(f"bn-lightning: error: {error}")
            return BAD_USAGE


def _is_bad_usage(error: Exception) -> bool:
    """Whether an error tells the user what to ask for instead, as those of this package do."""
    if isinstance(error, OSError) and error.filename is not None:
        return True  # a folder that cannot be written to, a file that cannot be read
    if not isinstance(error, ValueError | TypeError | RuntimeError):
        return type(error).__name__ == "MisconfigurationException"
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).startswith("bn_lightning.")


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(f"bn-lightning: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
