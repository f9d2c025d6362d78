"""Hand over the pre-activations of chosen sites, and their activations, in every forward, until taps are removed."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.activation_links import ActivationLink, LinkedForward, link_module
from bn_lightning.surgery.running.frames import Action, calling_frame, suspend_in_children
from bn_lightning.surgery.running.owner_forward import OwnerForward
from bn_lightning.surgery.tracing.ops import NONLINEARITIES

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
    def __init__(self, site: Site, position: int, receive: Receiver, receive_activation: Receiver | None) -> None:
        self.site = site
        self.wants_activation = receive_activation is not None
        self._position = position
        self._receive = receive
        self._receive_activation = receive_activation

    def before(self, preactivation: Tensor) -> Tensor:
        self._receive(self.site.layer, self._position, preactivation, self.site.channel_dim)
        return preactivation

    def after(self, activation: Tensor) -> Tensor:
        self.hand_over(activation)
        return activation

    def hand_over(self, activation: Tensor) -> None:
        if self._receive_activation is not None:
            self._receive_activation(self.site.layer, self._position, activation, self.site.channel_dim)


def activation_is_visible(site: Site) -> bool:
    """Whether `tap_preactivations` can hand over what the nonlinearity of a site returns.

    It cannot where the site is no call of a nonlinearity: on what a first layer reads (`attach="input"`), and on a
    branch of a sum (a plan with `site="affine"`).

    Args:
        site: A site of a plan made with `placement="before"`.

    Returns:
        Whether it can; a ReLU spelled as `torch.where` or the like is not told from a call here, and never comes.

    Example:
        >>> import torch
        >>> from bn_lightning.surgery.planning import plan_insertion
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> [activation_is_visible(site) for site in plan_insertion(model, (torch.randn(16, 8),), inputs=True).sites]
        [False, True]
    """
    if site.attach == "producer":
        return bool(site.activation) or site.function in NONLINEARITIES
    return site.attach != "input"


def tap_preactivations(
    model: nn.Module, sites: Sequence[Site], receive: Receiver, *, receive_activation: Receiver | None = None
) -> Taps:
    """Call `receive` with the pre-activation of each site in every forward from now on.

    The pre-activation is the tensor the nonlinearity receives, so after any norm inserted before it.
    It is handed over as it is: with its gradient history, and possibly overwritten afterwards by an
    in-place activation. What must last is to be reduced or copied inside `receive`.

    The activation is what the nonlinearity returns, before any norm inserted after it; after its
    pre-activation, in the same call. Of one written out by hand, such as `x * torch.sigmoid(x)`, it is what
    the nonlinearity named by the site returns, the sigmoid here. Sites whose activation cannot be seen
    (`activation_is_visible`) have their pre-activation handed over alone. In code that torch.compile has compiled,
    functions which it hands to nobody (`ops.UNSEEN_BY_COMPILER`) are not seen behind a layer.

    Taps are put on last, after norms have been inserted and before the model is compiled.

    Args:
        model: The module the sites were found in.
        sites: Sites of a plan made with `placement="before"`.
        receive: Called with the layer's path, the position in `sites`, the tensor and its channel
            axis counted from the end.
        receive_activation: Called in the same way with what the nonlinearity returns; None for nobody.

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
        _put_on(model, [_Receive(site, at, receive, receive_activation) for at, site in enumerate(sites)], taps)
    except BaseException:
        taps.remove()
        raise
    return taps


def _put_on(model: nn.Module, actions: Sequence[_Receive], taps: Taps) -> None:
    owners: dict[str, dict[str, dict[int, list[Action]]]] = {}
    linked: dict[str, dict[str, list[ActivationLink]]] = {}
    for action in actions:
        site = action.site
        if site.attach == "input":
            reader = _module(model, site.layer)
            taps._handles.append(reader.register_forward_pre_hook(_before_layer(action)))
        elif site.attach == "producer":
            link = _link(model, action, linked, taps)
            taps._handles.append(_module(model, site.layer).register_forward_hook(_after_layer(action, link)))
        elif site.attach == "call":
            owners.setdefault(site.owner, {}).setdefault(site.function, {})[site.call_index] = [action]
        else:
            if site.attach == "shared":
                owners.setdefault(site.owner, {})
            _around_activation(_module(model, site.activation), action, taps)
    for path, links in linked.items():
        _stand_in(_module(model, path), LinkedForward(_module(model, path), path, links), taps)
    for path, of_owner in owners.items():
        owner = _module(model, path)
        _stand_in(owner, _TapForward(owner, path, of_owner), taps)
        taps._handles.extend(suspend_in_children(owner))


def _stand_in(owner: nn.Module, forward: OwnerForward, taps: Taps) -> None:
    owner.__dict__["forward"] = forward
    taps._forwards.append(forward)


def _link(
    model: nn.Module, action: _Receive, linked: dict[str, dict[str, list[ActivationLink]]], taps: Taps
) -> ActivationLink | None:
    """What looks for the nonlinearity behind a layer; None where nobody asks or it cannot be seen."""
    site = action.site
    if not action.wants_activation or not activation_is_visible(site):
        return None
    link = ActivationLink(action.hand_over)
    if site.activation:
        taps._handles.extend(link_module(_module(model, site.activation), link))
    else:
        linked.setdefault(site.owner, {}).setdefault(site.function, []).append(link)
    return link


def _after_layer(action: _Receive, link: ActivationLink | None) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        action.before(output)
        if link is not None:
            link.expect(output)

    return hook


def _before_layer(action: _Receive) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        action.before(args[0])

    return hook


def _around_activation(activation: nn.Module, action: _Receive, taps: Taps) -> None:
    site, met = action.site, [False]

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if site.attach == "shared":
            frame = calling_frame(module)
            met[0] = frame is not None and (frame.path, frame.next_index(action)) == (site.owner, site.call_index)
            if not met[0]:
                return
        action.before(args[0])

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        if site.attach != "shared" or met[0]:
            action.hand_over(output)

    taps._handles.append(activation.register_forward_pre_hook(before))
    if action.wants_activation:
        # In front of other hooks, which may replace what the nonlinearity returned, as an inserted norm does.
        taps._handles.append(activation.register_forward_hook(after, prepend=True))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PlanMismatchError(
            f"{type(model).__name__} has no module {path!r}; find its sites anew with plan_insertion."
        ) from error
