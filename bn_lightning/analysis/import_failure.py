"""The error for a user's module that fails as it is imported, which says where."""

import importlib
import os
import traceback


def import_failure(what: str, error: BaseException) -> ValueError:
    """An error of one line for what a user's module raised while it was imported.

    Args:
        what: What was imported, as the start of a sentence.
        error: What it raised.

    Returns:
        The error, ready to be raised from the other; it names the innermost line of a file.

    Example:
        >>> str(import_failure("The module 'mine'", KeyError("lr")))
        "The module 'mine' fails as it is imported: KeyError: 'lr'."
    """
    # The first line is the one that imports, and those of the import system say nothing.
    lines = [
        f", at {frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)[1:]
        if frame.filename != importlib.__file__ and os.path.exists(frame.filename)
    ]
    where = lines[-1] if lines else ""
    return ValueError(f"{what} fails as it is imported: {type(error).__name__}: {error}{where}.")
