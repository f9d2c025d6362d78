"""Names that keep several callbacks of one kind in a Trainer apart: in tags, files and charts."""

import re
from typing import Any, Protocol, TypeVar

from bn_lightning.callbacks._compat import Trainer, misconfiguration


class Named(Protocol):
    """A callback that its user may have given a name."""

    name: str


NamedT = TypeVar("NamedT", bound=Named)


def checked_name(name: str) -> str:
    """The name itself.

    Args:
        name: What the user called a monitor; may be empty.

    Returns:
        The name.

    Raises:
        ValueError: If it holds what a tag or the name of a file cannot.
    """
    if not re.fullmatch(r"[\w-]*", name):
        raise ValueError(f"A monitor's name goes into tags and file names: letters, digits, _ and -, not {name!r}.")
    return name


def names_among(trainer: "Trainer", kind: type[NamedT]) -> dict[NamedT, str]:
    """A name for each callback of one class in a Trainer; the first without one of its own has none.

    Args:
        trainer: The Trainer.
        kind: The class.

    Returns:
        Names by callback, all different.

    Raises:
        MisconfigurationException: If two have one name.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    monitors = [callback for callback in callbacks if isinstance(callback, kind)]
    unnamed = [monitor for monitor in monitors if not monitor.name]
    numbers = {monitor: str(number) if number > 1 else "" for number, monitor in enumerate(unnamed, 1)}
    names = {monitor: monitor.name or numbers[monitor] for monitor in monitors}
    doubled = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if doubled:
        raise misconfiguration(
            trainer,
            f"{len(monitors)} {kind.__name__}s of this Trainer share the name {', '.join(map(repr, doubled))}, and "
            f"would overwrite each other's files and charts. Give each its own: {kind.__name__}(name=…).",
        )
    return names
