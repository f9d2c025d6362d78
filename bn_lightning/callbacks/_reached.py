"""Which networks of a model an example did not reach, so that insertion can say so."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import activation

# Attention and softmax are never places for a norm.
_NO_SITES = (nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax)


@contextmanager
def note_called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Note every module of `model` that is called inside.

    Args:
        model: The model that will run.

    Yields:
        The modules called so far.

    Example:
        >>> import torch
        >>> model = nn.ModuleList([nn.ReLU(), nn.Tanh()])
        >>> with note_called(model) as called:
        ...     _ = model[0](torch.zeros(2))
        >>> model[0] in called, model[1] in called
        (True, False)
    """
    called: set[nn.Module] = set()

    def note(module: nn.Module, args: object) -> None:
        called.add(module)

    # One by one: torch warns of a global hook wherever a compiled module runs.
    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def unreached_networks(model: nn.Module, called: set[nn.Module]) -> list[str]:
    """Paths of the outermost sub-modules that were not called and may hold activations to normalise.

    Such a sub-module has trainable parameters and holds an activation module, or a module of the user's
    own class, whose forward may call activations as functions. A lone layer or a metric is none.

    Args:
        model: The model that ran.
        called: The modules that were called.

    Returns:
        The paths, in the order of the model.

    Example:
        >>> networks = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
        >>> unreached_networks(networks, {networks["used"]})
        ['idle']
    """
    found: list[str] = []
    for name, child in model.named_children():
        # A container is not called itself, and a network may be run through a method of its own.
        if any(module in called for module in child.modules()):
            found += [f"{name}.{path}" for path in unreached_networks(child, called)]
        elif any(parameter.requires_grad for parameter in child.parameters()) and _may_hold_sites(child):
            found.append(name)
    return found


def _may_hold_sites(network: nn.Module) -> bool:
    return any(
        isinstance(module, _ACTIVATIONS) or not type(module).__module__.startswith("torch.nn.")
        for module in network.modules()
    )


_ACTIVATIONS = tuple(
    kind for name in activation.__all__ if not issubclass(kind := getattr(activation, name), _NO_SITES)
)
