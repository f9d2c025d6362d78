"""What objects of any kind are called, hold and have captured, looked at without running anything of theirs."""

from typing import Any


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes that an object holds itself, whether in a dict or in slots; no property is run.

    Args:
        value: Any object.

    Returns:
        Value by name, in alphabetical order.
    """
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            if isinstance(name, str) and name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return dict(sorted((str(name), entry) for name, entry in found.items()))


def qualified_name(value: Any) -> str:
    """Name of a class or function with its module; an object without a name is told by its class.

    Args:
        value: Any object.

    Returns:
        `module.name`.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", None))
    kind = type(value)
    return f"{module if isinstance(module, str) else '?'}.{name if isinstance(name, str) else kind.__qualname__}"


def contents(cell: Any) -> Any:
    """What a function captured.

    Args:
        cell: A cell of its closure.

    Returns:
        What the cell holds; None where its name was never bound.
    """
    try:
        return cell.cell_contents
    except ValueError:
        return None
