"""Recognise the call of a nonlinearity that receives what a layer has just returned, and see its result.

A plan tells a site on a layer by the layer, while the calls behind it may be several, as in a loop. The tensor itself
tells them apart: the one that the layer returned is the very object that its nonlinearity receives.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bn_lightning.surgery.running.owner_forward import OwnerForward
from bn_lightning.surgery.tracing.ops import NONLINEARITIES


class ActivationLink:
    """Waits for the tensor that a layer returned, and hands over what is made of it.

    Args:
        hand_over: Called with what the nonlinearity returns.
    """

    def __init__(self, hand_over: Callable[[Tensor], None]) -> None:
        self.hand_over = hand_over
        self._output: Any = None

    def expect(self, output: Tensor) -> None:
        """Wait for this tensor from now on; what was waited for before did not come."""
        # Held weakly, so that an activation which nothing takes is freed. torch.compile knows no weak references, and
        # there a link that is taken in the same graph costs nothing.
        self._output = output if torch.compiler.is_compiling() else weakref.ref(output)

    def takes(self, x: Tensor) -> bool:
        """Whether this is the tensor waited for; it is waited for no more."""
        expected = self._output() if isinstance(self._output, weakref.ref) else self._output
        if expected is not x:
            return False
        self._output = None
        return True


class LinkedForward(OwnerForward):
    """Stands in for the forward of an owner that calls nonlinearities as functions, and looks at these calls.

    Args:
        owner: The module.
        path: Its path when the plan was made.
        links: For each full function name of `ops.NONLINEARITIES`, those that wait for a call.
    """

    # Of the class: a copied model's stand-in, which forgets its links, only calls the forward it replaced.
    _links: Mapping[Any, Sequence[ActivationLink]] = {}

    def __init__(self, owner: nn.Module, path: str, links: Mapping[str, Sequence[ActivationLink]]) -> None:
        super().__init__(owner, path, {})
        self._links = {NONLINEARITIES[name]: waiting for name, waiting in links.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the owner's forward and look at the functions it calls."""
        if not self._links:
            return self._run_in_frame(args, kwargs)
        with _LinkMode(self._links):
            # In a frame of its own, though it counts nothing: stand-ins around one another tell a call of the owner by
            # frame after frame.
            return self._run_in_frame(args, kwargs)

    def restore(self) -> None:
        """Take this stand-in out again."""
        self._links = {}
        super().restore()


class _LinkMode(TorchFunctionMode):
    def __init__(self, links: Mapping[Any, Sequence[ActivationLink]]) -> None:
        super().__init__()
        self._links = links

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        links = self._links.get(function)
        if links is None:
            return function(*args, **kwargs)
        # The functions of ops.NONLINEARITIES name their first argument `input`, methods have it as self.
        received = args[0] if args else kwargs["input"]
        taken = [link for link in links if link.takes(received)]
        result = function(*args, **kwargs)
        for link in taken:
            link.hand_over(result)
        return result


def link_module(activation: nn.Module, link: ActivationLink) -> list[Any]:
    """Put hooks on an activation module that hand over what it makes of the tensor waited for.

    Args:
        activation: The module.
        link: Waits for the tensor.

    Returns:
        The handles of the hooks.
    """
    taken = [False]

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taken[0] = link.takes(args[0])

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        if taken[0]:
            link.hand_over(output)

    # In front of other hooks, which may replace what the nonlinearity returned, as an inserted norm does.
    return [activation.register_forward_pre_hook(before), activation.register_forward_hook(after, prepend=True)]
