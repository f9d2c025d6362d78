"""Notice that a model's layers have changed, and keep the names and places of those that remain."""

import weakref
from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torch.nn.parameter import is_lazy

from bn_lightning.callbacks._activation_monitor.series import Series


class ModuleTree:
    """What a model was made of: which modules, under which paths, and the shapes of their parameters.

    Looking costs some microseconds a module, and nothing is kept alive.

    Args:
        model: The model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> tree = ModuleTree(model)
        >>> tree.is_that_of(model)
        True
        >>> model[1] = nn.ReLU()
        >>> tree.is_that_of(model)
        False
    """

    def __init__(self, model: nn.Module) -> None:
        # Weak: the address of a module that is gone may be that of a new one, so an id would not do.
        self._modules = [(path, weakref.ref(module), _shapes(module)) for path, module in model.named_modules()]

    def is_that_of(self, model: nn.Module) -> bool:
        """Whether a model still consists of the same modules, with parameters of the same shapes.

        Args:
            model: The model.

        Returns:
            False after anything was added, removed, replaced, renamed, resized or materialised.
        """
        now = list(model.named_modules())
        return len(now) == len(self._modules) and all(
            path == known and _shapes(module) == shapes and reference() is module
            for (path, module), (known, reference, shapes) in zip(now, self._modules, strict=True)
        )


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    # What is lazy has no shape yet.
    own = module._parameters.items()
    return [(name, (-1,) if is_lazy(value) else tuple(value.shape)) for name, value in own if value is not None]


def unbuilt(model: nn.Module) -> list[str]:
    """Paths of the modules whose parameters are made by their first forward.

    Args:
        model: The model.

    Returns:
        The paths.

    Example:
        >>> unbuilt(nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2)))
        ['1']
    """
    return [path for path, part in model.named_modules() if any(map(is_lazy, part._parameters.values()))]


def continued(before: Sequence[Series], now: Sequence[Series]) -> tuple[tuple[Series, ...], tuple[int, ...]]:
    """All series there ever were, and where those of now are among them.

    A layer of the same kind, name and number of channels is the same series; new ones come behind the others of their
    kind, so that no earlier one loses its number. One whose number of channels is new is another layer,
    `<layer>-<channels>ch`: its statistics are of other units.

    Args:
        before: All series there were.
        now: Those of the model as it is, named by their layers.

    Returns:
        All series, and the place of each of those of now.

    Example:
        >>> old, new = Series("output", "a", 4), Series("output", "b", 2)
        >>> union, places = continued([old], [new, Series("output", "a", 8), old])
        >>> [one.label for one in union], places
        (['a', 'b', 'a-8ch'], (1, 2, 0))
    """
    renamed = [_renamed(before, one) for one in now]
    union: list[Series] = []
    for kind in sorted({one.kind for one in (*before, *now)}, key=_order):
        known = {_identity(one): one for one in before if one.kind == kind}
        # Where the nonlinearity was exchanged, the layer is the same and what reads it is not.
        known |= {_identity(one): one for one in renamed if one.kind == kind}
        union += known.values()
    places = {_identity(one): place for place, one in enumerate(union)}
    return tuple(union), tuple(places[_identity(one)] for one in renamed)


def _identity(series: Series) -> tuple[str, str, int]:
    return series.kind, series.label, series.channels


def _order(kind: str) -> tuple[bool, int]:
    # Pre-activations stay in front, since single units are known by the place of theirs.
    measured = kind.removesuffix("_gradient")
    return kind != measured, ("preactivation", "activation", "output").index(measured)


def _renamed(before: Sequence[Series], one: Series) -> Series:
    known = {other.channels for other in before if (other.kind, other.label) == (one.kind, one.label)}
    return one if not known or one.channels in known else replace(one, label=f"{one.label}-{one.channels}ch")


def what_changed(before: Sequence[Series], now: Sequence[Series]) -> str:
    """Which layers came and which went, in words; empty if neither.

    Args:
        before: What was recorded until now.
        now: What is recorded from now on.

    Returns:
        Such as "new: head.2; gone: head.0".
    """
    old, new = (list(dict.fromkeys(one.label for one in series)) for series in (before, now))
    came, went = [one for one in new if one not in old], [one for one in old if one not in new]
    return "; ".join(f"{word}: {_few(names)}" for word, names in (("new", came), ("gone", went)) if names)


def _few(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
