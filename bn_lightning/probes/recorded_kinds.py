"""The words that say what is recorded of a layer."""

import difflib
from collections.abc import Collection

from bn_lightning.errors import UnknownNameError

PREACTIVATIONS = "preactivations"
ACTIVATIONS = "activations"
GRADIENTS = "gradients"
RECORDABLE = (PREACTIVATIONS, ACTIVATIONS, GRADIENTS)


def checked_record(record: str | Collection[str], *, with_outputs: bool = False) -> tuple[str, ...]:
    """What to record, in the order in which it is kept.

    Args:
        record: "preactivations" (what a nonlinearity receives), "activations" (what it returns), "gradients" (of the
            loss with respect to whatever else is recorded): one of the words, or several.
        with_outputs: Whether outputs of modules are recorded too, so that neither of the first two is needed.

    Returns:
        The words, each once.

    Raises:
        UnknownNameError: If there is no such word; the message names the near ones.
        ValueError: If the words leave nothing to record.

    Example:
        >>> checked_record(["gradients", "preactivations"])
        ('preactivations', 'gradients')
        >>> checked_record("gradients", with_outputs=True)
        ('gradients',)
    """
    words = (record,) if isinstance(record, str) else tuple(record)
    for word in words:
        if word not in RECORDABLE:
            near = difflib.get_close_matches(str(word), RECORDABLE, n=2)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownNameError(
                f"record=… takes {', '.join(map(repr, RECORDABLE[:-1]))} and {RECORDABLE[-1]!r}, not {word!r}.{hint}"
            )
    if not with_outputs and not {PREACTIVATIONS, ACTIVATIONS} & set(words):
        raise ValueError(
            f"record={record!r} leaves nothing to record: name 'preactivations' or 'activations', or modules whose "
            "outputs to record (layers=…); gradients are those of what is recorded."
        )
    return tuple(word for word in RECORDABLE if word in words)
