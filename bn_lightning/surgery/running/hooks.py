"""The hooks that apply inserted norms.

They are module-level functions that read the norms off the module they hang on, never closures: so
copying and pickling a model keep working, and hooks can be found again by what they are.
"""

from typing import Any

from torch import Tensor, nn

from bn_lightning.surgery.running.frames import Action, calling_frame, resume, suspend
from bn_lightning.surgery.running.norms import InsertedNorms
from bn_lightning.surgery.tracing.graph import CHILD_NAME


def producer_hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of a layer: normalise what it hands to the nonlinearity."""
    norms = _norms_of(module)
    return norms.normalize(norms.of_output, output)


def input_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Forward pre-hook of a layer: normalise what it reads, its first argument.

    Raises:
        TypeError: If that holds no floating-point numbers.
    """
    norms = _norms_of(module)
    name = None if args else next(iter(kwargs))
    x = args[0] if name is None else kwargs[name]
    if not x.is_floating_point():
        raise TypeError(
            f"The norm on the input of a layer, at {norms.slots[norms.of_input].site!r}, received numbers of type "
            f"{x.dtype} and needs floating point. Give the model x.float(), or plan without inputs=True."
        )
    normalised = norms.normalize(norms.of_input, x)
    if name is None:
        return (normalised, *args[1:]), kwargs
    return args, {**kwargs, name: normalised}


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
    first = norms.slots[0]
    if not first.shared:
        return 0
    frame = calling_frame(module)
    if frame is None:
        return None
    # By the path that the plan knows, so that the frame's counts can be compared with the plan's.
    index = frame.next_index(first.activation) if count else frame.counts.get(first.activation, 1) - 1
    for number, slot in enumerate(norms.slots):
        if (slot.owner, slot.call_index) == (frame.path, index):
            frame.refuse_checkpoint(module_calls=1)
            return number
    return None


class Normalize(Action):
    """Normalises one functional call's input or output with a norm of its owner.

    Args:
        owner: The module that makes the call and carries the norms.
        number: Which of its norms.
        behind: Whether the norm acts on the output.
    """

    def __init__(self, owner: nn.Module, number: int, *, behind: bool) -> None:
        self.owner = owner
        # As text: of a plain object's numbers torch.compile makes symbols with dynamic=True, which name no module.
        self._number = str(number)
        self.behind = behind

    def for_owner(self, owner: nn.Module) -> "Normalize":
        """The same for a replica, which carries replicas of the norms."""
        return Normalize(owner, int(self._number), behind=self.behind)

    def before(self, preactivation: Tensor) -> Tensor:
        """Normalise what the nonlinearity receives, if the norm goes before it."""
        return preactivation if self.behind else self._normalize(preactivation)

    def after(self, activation: Tensor) -> Tensor:
        """Normalise what the nonlinearity returns, if the norm goes after it."""
        return self._normalize(activation) if self.behind else activation

    def _normalize(self, x: Tensor) -> Tensor:
        return _norms_of(self.owner).normalize(int(self._number), x)


OWN_HOOKS = (producer_hook, input_hook, activation_hook, activation_output_hook, suspend, resume)
"""Every hook that insertion registers, so that it can be told from a user's."""
