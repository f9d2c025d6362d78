"""Words on the terminal, and the exit statuses of commands."""

import sys

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def say(text: str) -> None:
    """Print a line where results go.

    Args:
        text: The line.
    """
    sys.stdout.write(f"{text}\n")


def complain(text: str) -> None:
    """Print a line where errors and warnings go.

    Args:
        text: The line.
    """
    sys.stderr.write(f"{text}\n")
