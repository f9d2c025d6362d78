"""The layers of a network that own trained parameters, in the order in which a forward calls them."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bn_lightning.errors import UnknownNameError


def owner_of(parameter: str) -> str:
    """The layer that a parameter belongs to.

    Args:
        parameter: Its path.

    Returns:
        The path of the module that holds it; for one that a parametrization (``torch.nn.utils.parametrize``) computes a
        weight from, that of the module whose weight it is.

    Example:
        >>> owner_of("fc.bias"), owner_of("fc.parametrizations.weight.original0")
        ('fc', 'fc')
    """
    owner, parametrized, _ = f".{parameter}".partition(".parametrizations.")
    return owner[1:] if parametrized else parameter.rpartition(".")[0]


@contextmanager
def noted_calls(model: nn.Module) -> Iterator[list[str]]:
    """Note which modules with parameters of their own (see `owner_of`) are called, each at its first call.

    Args:
        model: The module; hooks are on it until the block is left.

    Yields:
        Paths, filled while the model runs.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> with noted_calls(model) as order:
        ...     _ = model(torch.zeros(1, 2))
        >>> order
        ['0', '2']
    """
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda module, args: order.append(name) if name not in order else None

    owners = {owner_of(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules() if name in owners]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


def layers_in_order(parameters: Mapping[str, Tensor], called: Sequence[str]) -> dict[str, list[str]]:
    """Paths of the parameters of each layer, the layers in the order of the forward.

    Args:
        parameters: Trained parameters by path, in the order of registration.
        called: Paths of modules in the order of their first calls.

    Returns:
        Paths of parameters by layer (see `owner_of`). A layer that is never called itself, its parameters being read by
        others, comes behind the one registered before it.

    Example:
        >>> import torch
        >>> weight = torch.zeros(1)
        >>> layers_in_order({"a.weight": weight, "b.weight": weight, "b.bias": weight}, ["b", "a"])
        {'b': ['b.weight', 'b.bias'], 'a': ['a.weight']}
    """
    owned: dict[str, list[str]] = {}
    for name in parameters:
        owned.setdefault(owner_of(name), []).append(name)
    ordered = [layer for layer in called if layer in owned]
    registered = list(owned)
    for position, layer in enumerate(registered):
        if layer not in ordered:
            ordered.insert(ordered.index(registered[position - 1]) + 1 if position else 0, layer)
    return {layer: owned[layer] for layer in ordered}


def choose_layers(
    owned: Mapping[str, Sequence[str]], parameters: Mapping[str, Tensor], patterns: str | Sequence[str] | None
) -> list[str]:
    """The layers that patterns choose, by default those with a parameter of two or more axes.

    Args:
        owned: Paths of parameters by layer.
        parameters: Parameters by path.
        patterns: fnmatch patterns on the layers' paths.

    Returns:
        The layers, in the order of `owned`.

    Raises:
        UnknownNameError: If a pattern matches nothing.
        ValueError: If there are no patterns and no layer has such a parameter.

    Example:
        >>> import torch
        >>> owned = {"0": ["0.weight"], "1": ["1.weight"]}
        >>> choose_layers(owned, {"0.weight": torch.zeros(2, 2), "1.weight": torch.zeros(2)}, None)
        ['0']
    """
    if patterns is None:
        chosen = {layer for layer, names in owned.items() if any(parameters[name].dim() > 1 for name in names)}
        if not chosen:
            raise ValueError(
                f"None of the layers with trained parameters ({', '.join(map(repr, owned))}) has one of two or more "
                "axes; choose some with layers=."
            )
    else:
        chosen = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = fnmatch.filter(owned, pattern)
            if not matched:
                raise UnknownNameError(
                    f"No layer with trainable parameters matches {pattern!r}; there are: {', '.join(owned)}."
                )
            chosen.update(matched)
    return [layer for layer in owned if layer in chosen]
