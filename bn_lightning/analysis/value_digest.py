"""Digests of classes and objects, with whatever the code of users' in them reads elsewhere."""

import json
from typing import Any

from bn_lightning.analysis.library_modules import is_installed
from bn_lightning.analysis.read_elsewhere import read_elsewhere
from bn_lightning.analysis.short_digest import short_digest
from bn_lightning.analysis.value_teller import ValueTeller


def class_digest(kind: type) -> tuple[str, dict[str, str]]:
    """Digest what a user's class does, with what it holds and inherits from other classes of users'.

    Args:
        kind: A class.

    Returns:
        Twelve hexadecimal digits of its methods, properties and attributes; and what `read_elsewhere` says of them.

    Example:
        >>> class_digest(dict)[1]
        {}
    """
    teller = ValueTeller(is_installed)
    return teller.tell(kind), read_elsewhere(teller.met)


def value_digest(value: Any) -> str:
    """Digest any object by what it holds, and by the code of what users wrote in it.

    Args:
        value: Any object.

    Returns:
        Twelve hexadecimal digits, the same in every process. An object that gives no insight is told by its class.

    Example:
        >>> value_digest([1, {"a": 2}]) == value_digest([1, {"a": 3}])
        False
    """
    teller = ValueTeller(is_installed)
    told = teller.tell(value)
    return short_digest(json.dumps([told, read_elsewhere(teller.met)]).encode())
