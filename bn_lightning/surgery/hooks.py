"""The hooks that apply inserted norms.

They are module-level functions that read the norms off the module they hang on, never closures: so
copying and pickling a model keep working, and hooks can be found again by what they are.
"""

from typing import Any

from torch import Tensor, nn

from bn_lightning.surgery.frames import Action, calling_frame, resume, suspend
from bn_lightning.surgery.graph import CHILD_NAME
from bn_lightning.surgery.norms import InsertedNorms


def producer_hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of a layer: normalise what it hands to the nonlinearity."""
    norms = _norms_of(module)
    return norms.normalize(0, output)


def activation_hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of an activation module: normalise what it receives."""
    norms = _norms_of(module)
    number = _number_of(module, norms, count=True)
    if number is None or norms.slots[number].after:
        return args
    return (norms.normalize(number, args[0]), *args[1:])


def activation_output_hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of an activation module: normalise what it returns."""
    norms = _norms_of(module)
    number = _number_of(module, norms, count=False)
    if number is None or not norms.slots[number].after:
        return output
    return norms.normalize(number, output)


def _norms_of(module: nn.Module) -> InsertedNorms:
    # A plain look-up: this runs at every call of a layer, where get_submodule's parsing of a path would show.
    norms: Any = module._modules[CHILD_NAME]
    return norms


def _number_of(module: nn.Module, norms: InsertedNorms, *, count: bool) -> int | None:
    """Which norm serves the running call of an activation module; None for a call that the plan leaves alone."""
    if not norms.slots[0].shared:
        return 0
    frame = calling_frame(module)
    if frame is None:
        return None
    index = frame.next_index(norms) if count else frame.counts.get(norms, 1) - 1
    for number, slot in enumerate(norms.slots):
        if (slot.owner, slot.call_index) == (frame.path, index):
            return number
    return None


class Normalize(Action):
    """Normalises one functional call's input or output with a norm of its owner."""

    def __init__(self, norms: InsertedNorms, number: int) -> None:
        self.norms = norms
        self.number = number

    def before(self, preactivation: Tensor) -> Tensor:
        """Normalise what the nonlinearity receives, if the norm goes before it."""
        after = self.norms.slots[self.number].after
        return preactivation if after else self.norms.normalize(self.number, preactivation)

    def after(self, activation: Tensor) -> Tensor:
        """Normalise what the nonlinearity returns, if the norm goes after it."""
        after = self.norms.slots[self.number].after
        return self.norms.normalize(self.number, activation) if after else activation


OWN_HOOKS = (producer_hook, activation_hook, activation_output_hook, suspend, resume)
"""Every hook that insertion registers, so that it can be told from a user's."""
