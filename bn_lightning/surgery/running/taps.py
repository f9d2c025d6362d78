"""Hand over the pre-activations of chosen sites in every forward, until the taps are removed."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.frames import Action, calling_frame, suspend_in_children
from bn_lightning.surgery.running.owner_forward import OwnerForward

Receiver = Callable[[str, int, Tensor, int], None]
"""Called with the layer, the position of the site in the sequence given, the tensor and its channel axis."""


class Taps:
    """Hooks that are on until `remove` is called or the `with` block ends."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._forwards: list[OwnerForward] = []

    def remove(self) -> None:
        """Take every hook out again; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        for forward in self._forwards:
            forward.restore()
        self._handles.clear()
        self._forwards.clear()

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


class _TapForward(OwnerForward):
    """Counts calls for taps; told apart by its type from the stand-ins that carry norms."""


class _Receive(Action):
    def __init__(self, receive: Receiver, position: int, site: Site) -> None:
        self._receive = receive
        self._position = position
        self._site = site

    def before(self, preactivation: Tensor) -> Tensor:
        self._receive(self._site.layer, self._position, preactivation, self._site.channel_dim)
        return preactivation

    def after(self, activation: Tensor) -> Tensor:
        return activation


def tap_preactivations(model: nn.Module, sites: Sequence[Site], receive: Receiver) -> Taps:
    """Call `receive` with the pre-activation of each site in every forward from now on.

    The pre-activation is the tensor the nonlinearity receives, so after any norm inserted before it.
    It is handed over as it is: with its gradient history, and possibly overwritten afterwards by an
    in-place activation. What must last is to be reduced or copied inside `receive`.

    Taps are put on last, after norms have been inserted and before the model is compiled.

    Args:
        model: The module the sites were found in.
        sites: Sites of a plan made with `placement="before"`.
        receive: Called with the layer's path, the position in `sites`, the tensor and its channel
            axis counted from the end.

    Returns:
        The taps; a context manager.

    Raises:
        PlanMismatchError: If the model lacks a module that a site names.

    Example:
        >>> import torch
        >>> from bn_lightning.surgery.planning import plan_insertion
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(16, 8)
        >>> seen = {}
        >>> with tap_preactivations(
        ...     model, plan_insertion(model, (x,)).sites, lambda layer, index, value, axis: seen.update({layer: value})
        ... ):
        ...     _ = model(x)
        >>> torch.equal(seen["0"], model[0](x))
        True
    """
    taps = Taps()
    try:
        _put_on(model, sites, receive, taps)
    except BaseException:
        taps.remove()
        raise
    return taps


def _put_on(model: nn.Module, sites: Sequence[Site], receive: Receiver, taps: Taps) -> None:
    owners: dict[str, dict[str, dict[int, list[Action]]]] = {}
    for position, site in enumerate(sites):
        action = _Receive(receive, position, site)
        if site.attach == "input":
            reader = _module(model, site.layer)
            taps._handles.append(reader.register_forward_pre_hook(_before_activation(action, site)))
            continue
        if site.attach == "producer":
            taps._handles.append(_module(model, site.layer).register_forward_hook(_after_layer(action)))
            continue
        if site.attach == "call":
            owners.setdefault(site.owner, {}).setdefault(site.function, {})[site.call_index] = [action]
            continue
        if site.attach == "shared":
            owners.setdefault(site.owner, {})
        activation = _module(model, site.activation)
        taps._handles.append(activation.register_forward_pre_hook(_before_activation(action, site)))
    for path, actions in owners.items():
        owner = _module(model, path)
        forward = _TapForward(owner, path, actions)
        owner.__dict__["forward"] = forward
        taps._forwards.append(forward)
        taps._handles.extend(suspend_in_children(owner))


def _after_layer(action: _Receive) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        action.before(output)

    return hook


def _before_activation(action: _Receive, site: Site) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if site.attach == "shared":
            frame = calling_frame(module)
            if frame is None or (frame.path, frame.next_index(action)) != (site.owner, site.call_index):
                return
        action.before(args[0])

    return hook


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PlanMismatchError(
            f"{type(model).__name__} has no module {path!r}; find its sites anew with plan_insertion."
        ) from error
