"""The error for a name that does not exist, with the ones that may have been meant."""

import difflib
from collections.abc import Iterable

from bn_lightning.errors import UnknownNameError


def unknown_name(kind: str, asked: str, known: Iterable[str]) -> UnknownNameError:
    """An error that says which name was asked for, which are near, and which there are.

    Args:
        kind: What was named, such as "study".
        asked: The name that does not exist.
        known: Names that do.

    Returns:
        The error, ready to be raised.

    Example:
        >>> str(unknown_name("study", "placment", ["placement", "renorm"]))
        "There is no study 'placment'. Did you mean 'placement'? There are: placement, renorm."
    """
    names = sorted(known)
    near = difflib.get_close_matches(asked, names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UnknownNameError(f"There is no {kind} {asked!r}.{hint} There are: {', '.join(names) or 'none'}.")
