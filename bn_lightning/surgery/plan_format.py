"""Whether what was read from JSON is an insertion plan: types, ranges and what each way of attaching needs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bn_lightning.errors import PlanMismatchError

_LEAST = {"channels": 0, "call_index": 0, "visits": 1, "num_examples": 1}
_NEEDED = {"producer": "layer", "input": "layer", "activation": "activation", "shared": "activation"}


def check_fields(kind: type, data: Any, what: str) -> None:
    """Refuse values that the fields of a class cannot have.

    Args:
        kind: The dataclass.
        data: Values by name of the field; fields may be left out.
        what: What the values belong to, in words.

    Raises:
        PlanMismatchError: If these are no values by name, or one has another type or is out of range.

    Example:
        >>> from bn_lightning.surgery.plan import InsertionPlan
        >>> check_fields(InsertionPlan, {"placement": "beside"}, "the plan")
        Traceback (most recent call last):
        bn_lightning.errors.PlanMismatchError: No insertion plan: in the plan, placement is 'beside' and should be \
'before' or 'after'. Make it anew with plan_insertion.
    """
    if not isinstance(data, Mapping):
        raise _refusal(f"{what} is {data!r} and should be values by name")
    for name, hint in get_type_hints(kind).items():
        least = _LEAST.get(name)
        if name in data and not (_fits(data[name], hint) and (least is None or data[name] >= least)):
            wanted = _words(hint) + (f" from {least} on" if least is not None else "")
            raise _refusal(f"in {what}, {name} is {data[name]!r} and should be {wanted}")


def check_sites(sites: Sequence[Any]) -> None:
    """Refuse sites that contradict themselves or one another.

    Args:
        sites: Sites whose fields have been checked.

    Raises:
        PlanMismatchError: If two have one name, an axis is none of the shape's, a norm would have no channels or the
            place where a norm would be attached is not named.
    """
    names: set[str] = set()
    for site in sites:
        if site.name in names:
            raise _refusal(f"two sites are called {site.name!r}")
        names.add(site.name)
        if site.decision == "skip":
            continue
        if not -len(site.shape) <= site.channel_dim < 0:
            raise _refusal(f"the site {site.name!r} has channel_dim {site.channel_dim} and shape {site.shape}")
        if not 0 < site.channels == site.shape[site.channel_dim]:
            raise _refusal(
                f"the site {site.name!r} has {site.channels} channels, and shape {site.shape} with axis "
                f"{site.channel_dim} for them"
            )
        needed = _NEEDED.get(site.attach, "function")
        if not getattr(site, needed):
            raise _refusal(f"the site {site.name!r} is attached by {site.attach!r} and names no {needed}")


def _refusal(found: str) -> PlanMismatchError:
    return PlanMismatchError(f"No insertion plan: {found}. Make it anew with plan_insertion.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(map(_is_size, value))
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    # A whole number of JSON is no boolean, which Python counts among its integers.
    return type(value) is hint


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list of sizes"
    return {str: "text", int: "a whole number"}.get(hint, "values by name")
