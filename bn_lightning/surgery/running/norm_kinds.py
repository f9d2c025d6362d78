"""The names of the norms that can be inserted, and which of their arguments can be given.

What each norm reduces, and how it is made, is said in `norm_modules`.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bn_lightning.errors import NormOptionError, UnknownNameError
from bn_lightning.surgery.plan import NORMS, NormFactory

_TORCH_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (nn.BatchNorm1d,),
    "layer": (nn.LayerNorm, nn.GroupNorm),
    "group": (nn.GroupNorm,),
    "instance": (nn.InstanceNorm1d,),
    "rms": (nn.RMSNorm,),
}
_NOT_OPTIONS = {"self", "num_features", "num_channels", "normalized_shape", "device", "dtype"}


def check_norm(norm: str | NormFactory, norm_options: Mapping[str, Any] | None = None) -> None:
    """Refuse a norm, or an argument of one, that does not exist or cannot have that value.

    Args:
        norm: Name of a norm, or a factory `channels -> nn.Module`.
        norm_options: Arguments of the norm.

    Raises:
        UnknownNameError: If there is no norm of that name, or it has no such argument.
        NormOptionError: If arguments are given for a factory, a value is none that the argument can have, or `norm` is
            neither a name nor a factory.

    Example:
        >>> check_norm("group", {"num_groups": 4, "affine": False})
        >>> check_norm("layer", {"momentum": 0.1})
        Traceback (most recent call last):
        bn_lightning.errors.UnknownNameError: The layer norm has no option 'momentum'; it takes eps, affine, bias.
    """
    if norm_options is not None and not isinstance(norm_options, Mapping):
        raise NormOptionError(f"norm_options are values by name, such as {{'momentum': 0.01}}; got {norm_options!r}.")
    options = dict(norm_options or {})
    if isinstance(norm, nn.Module) or not (isinstance(norm, str) or callable(norm)):
        raise NormOptionError(
            f"norm is one of {', '.join(NORMS)} or a factory channels -> nn.Module, such as nn.BatchNorm1d; got "
            f"{norm!r}, which makes none."
        )
    if not isinstance(norm, str):
        if options:
            raise NormOptionError(
                f"norm_options ({', '.join(options)}) are for a norm that is named; let the factory set its own, as in "
                "norm=lambda channels: nn.BatchNorm1d(channels, momentum=0.01)."
            )
        return
    if norm not in NORMS:
        raise UnknownNameError(
            f"No norm is called {norm!r}; the names are {', '.join(NORMS)}, or give a factory channels -> nn.Module."
        )
    known = options_of(norm)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UnknownNameError(
            f"The {norm} norm has no option {', '.join(map(repr, unknown))}; it takes {', '.join(known)}."
        )
    for name, value in options.items():
        _check_value(norm, name, value)


def options_of(norm: str) -> tuple[str, ...]:
    """Names of the arguments that a norm takes, with "affine" for scale and shift whatever torch calls it.

    Args:
        norm: Name of a norm.

    Returns:
        The names, in the order of torch's signature.

    Example:
        >>> options_of("rms")
        ('eps', 'affine')
    """
    first, *others = (_arguments(kind) for kind in _TORCH_CLASSES[norm])
    return tuple(name for name in first if all(name in other for other in others))


def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    constructor: Callable[..., Any] = kind.__init__
    names = [name for name in inspect.signature(constructor).parameters if name not in _NOT_OPTIONS]
    return tuple("affine" if name == "elementwise_affine" else name for name in names)


def _check_value(norm: str, name: str, value: Any) -> None:
    if name in ("affine", "bias", "track_running_stats"):
        wanted, fits = "True or False", isinstance(value, bool)
    elif name == "num_groups":
        wanted, fits = "a positive whole number", type(value) is int and value > 0
    elif name == "momentum":
        wanted = "a number from 0 to 1 (the weight of the new batch), or None for the mean over all batches"
        fits = value is None or (_is_number(value) and 0 <= value <= 1)
    elif name == "eps":
        wanted, fits = "a number of 0 or more", _is_number(value) and value >= 0
        if norm == "batch":  # torch refuses 0 in training
            wanted, fits = "a positive number", fits and value > 0
        if norm == "rms":
            wanted, fits = f"{wanted}, or None for the smallest step of the input's type", fits or value is None
    else:  # an argument of a later torch than this release knows
        wanted, fits = "one that JSON can hold, for checkpoints", _is_json(value)
    if not fits:
        raise NormOptionError(f"The option {name!r} of the {norm} norm is {value!r}; it must be {wanted}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
