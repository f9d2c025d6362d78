"""Take local response normalization out of a model, so that checkpoints know of it.

Unlike dropout it acts in evaluation too, so weights that were trained without it must not be run with it. It has no
entry in a state dict; a removed one therefore gets one, `bn_lightning_removed`. A model that still has its local
response norms then refuses such weights ("Unexpected key") where it would silently compute something else.
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MARK = "bn_lightning_removed"


class RemovedLocalResponseNorm(nn.LocalResponseNorm):
    """A local response norm that hands its input on as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, of any shape."""
        return input


class RemovedCrossMapLRN2d(nn.CrossMapLRN2d):
    """A local response norm of the older kind that hands its input on as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, of any shape."""
        return input


_REMOVED: dict[type[nn.Module], type[nn.Module]] = {
    nn.LocalResponseNorm: RemovedLocalResponseNorm,
    nn.CrossMapLRN2d: RemovedCrossMapLRN2d,
}
_KINDS, _REMOVED_KINDS = tuple(_REMOVED), tuple(_REMOVED.values())


def remove_local_response_norm(model: nn.Module, *, only: Container[str] | None = None) -> tuple[str, ...]:
    """Let every `nn.LocalResponseNorm` and `nn.CrossMapLRN2d` of a model hand its input on unchanged.

    Source: Ioffe & Szegedy 2015, section 4.2.1 ("Remove Local Response Normalization").

    The modules stay in their place and keep their settings; their class becomes one that does nothing, and they get
    a buffer, so that the model's state dict says that they are gone. Calls of `torch.nn.functional` are not reached.

    Args:
        model: Changed in place. A second call changes nothing more.
        only: Names of modules to which this is limited; None for all.

    Returns:
        The names of the modules that were removed by this call, each module once.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5))
        >>> remove_local_response_norm(net)
        ('2',)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.equal(net(x), net[:2](x))
        True
        >>> list(net.state_dict())
        ['0.weight', '0.bias', '2.bn_lightning_removed']
    """
    names = []
    for name, module in model.named_modules():
        present = isinstance(module, _KINDS) and not isinstance(module, _REMOVED_KINDS)
        if not present or (only is not None and name not in only):
            continue
        kind = next(removed for known, removed in _REMOVED.items() if isinstance(module, known))
        vars(module)["_bn_lightning_class"] = type(module)
        module.__class__ = kind
        device = next((parameter.device for parameter in model.parameters()), None)
        module.register_buffer(MARK, torch.ones((), dtype=torch.int64, device=device))
        names.append(name)
    return tuple(names)


def restore_local_response_norm(model: nn.Module) -> tuple[str, ...]:
    """Undo `remove_local_response_norm`.

    Args:
        model: Changed in place.

    Returns:
        The names of the modules that act again.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, _REMOVED_KINDS):
            delattr(module, MARK)
            module.__class__ = vars(module).pop("_bn_lightning_class")
            names.append(name)
    return tuple(names)


def remove_as_in(model: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Remove the local response norms that a state dict says were removed in the model it comes from.

    Args:
        model: Changed in place.
        state_dict: The weights that are about to be loaded.
        prefix: What the names of the model's entries begin with.

    Returns:
        The names of the modules that were removed by this call.
    """
    ending = f".{MARK}"
    marked = {key[len(prefix) : -len(ending)] for key in state_dict if key.startswith(prefix) and key.endswith(ending)}
    return remove_local_response_norm(model, only=marked)


def follow_state_dicts(model: nn.Module) -> RemovableHandle:
    """Let a model take the removal over from every state dict that it loads, before it loads it.

    Args:
        model: The model; modules that it has only by then are found too.

    Returns:
        A handle with which to end this.
    """
    handle: RemovableHandle = model.register_load_state_dict_pre_hook(_follow)
    return handle


def _follow(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    remove_as_in(module, state_dict, prefix)
