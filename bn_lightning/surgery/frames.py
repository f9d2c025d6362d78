"""Meet the n-th call of a function in one module's own forward.

A module's forward is replaced by an `OwnerForward`, which opens a frame for the call. Within it the
calls of a nonlinearity are counted, those made inside child modules excepted: these suspend the
frame. Everything here is a plain object or a module-level function, so models stay copyable,
picklable and compilable.
"""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.graph import CHILD_NAME
from bn_lightning.surgery.ops import NONLINEARITIES


class Action(Protocol):
    """What to do around one call of a nonlinearity."""

    def before(self, preactivation: Tensor) -> Tensor:
        """Return what the nonlinearity receives."""
        ...

    def after(self, activation: Tensor) -> Tensor:
        """Return what its caller receives."""
        ...


class _Frames(threading.local):
    def __init__(self) -> None:
        self.stack: list[Frame | nn.Module] = []


_FRAMES = _Frames()


class Frame(TorchFunctionMode):
    """One running forward of an owner; counts its calls and applies actions to them.

    Args:
        owner: The module whose forward runs.
        path: Its path when the plan was made.
        actions: For each function, the actions by number of the call.
    """

    def __init__(self, owner: nn.Module, path: str, actions: dict[Callable[..., Any], dict[int, list[Action]]]) -> None:
        super().__init__()
        self.owner = owner
        self.path = path
        self.actions = actions
        self.counts: dict[Any, int] = {}
        # Stand-ins around one another share a call of the owner; a recursive call is another one.
        self.invocation: object = self
        self.calls: Any = None

    def next_index(self, key: Any) -> int:
        """Count one more call of `key`; how many came before."""
        index = self.counts.get(key, 0)
        self.counts[key] = index + 1
        return index

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        actions = self.actions.get(function)
        if actions is None or not self._is_running():
            return function(*args, **kwargs)
        here = actions.get(self.next_index(function))
        if here is None:
            return function(*args, **kwargs)
        # The functions of ops.NONLINEARITIES name their first argument `input`, methods have it as self.
        positional = bool(args)
        preactivation = args[0] if positional else kwargs["input"]
        for action in here:
            preactivation = action.before(preactivation)
        if positional:
            result = function(preactivation, *args[1:], **kwargs)
        else:
            result = function(**{**kwargs, "input": preactivation})
        for action in here:
            result = action.after(result)
        return result

    def _is_running(self) -> bool:
        top = _FRAMES.stack[-1] if _FRAMES.stack else None
        return isinstance(top, Frame) and top.invocation is self.invocation


def calling_frame(module: nn.Module) -> Frame | None:
    """The frame of the owner whose own code calls `module` now; for the hooks of that module.

    Args:
        module: The module whose hook asks.

    Returns:
        The frame; None where the caller is no owner.
    """
    depth = len(_FRAMES.stack)
    while depth and _FRAMES.stack[depth - 1] is module:
        depth -= 1
    top = _FRAMES.stack[depth - 1] if depth else None
    return top if isinstance(top, Frame) else None


class OwnerForward:
    """Stands in for the forward of an owner and opens a frame for each call.

    Args:
        owner: The module.
        path: Its path when the plan was made.
        actions: For each full function name of `ops.NONLINEARITIES`, the actions by number of the call.
        expected: How many calls one forward made in the example, by full function name or, for a shared
            activation module, by the object that its hook counts with.
    """

    def __init__(
        self,
        owner: nn.Module,
        path: str,
        actions: dict[str, dict[int, list[Action]]],
        expected: dict[Any, int] | None = None,
    ) -> None:
        self.owner = owner
        self.path = path
        self.actions = actions
        self.expected = dict(expected or {})
        self.warned = False
        self.replaced = owner.__dict__.get("forward")
        self._resolve()

    def restore(self) -> None:
        """Take this stand-in out again, also from under others that came later.

        Where somebody else's code still calls it, it does nothing but call the forward it replaced.
        """
        for of_call in (self.actions, self.expected, self._by_function):
            of_call.clear()
        outer = vars(self.owner).get("forward")
        if outer is not self:
            while isinstance(outer, OwnerForward) and outer.replaced is not self:
                outer = outer.replaced
            if isinstance(outer, OwnerForward):
                outer.replaced = self.replaced
        elif self.replaced is None:
            del self.owner.__dict__["forward"]
        else:
            self.owner.__dict__["forward"] = self.replaced

    def _resolve(self) -> None:
        self._by_function: dict[Any, dict[int, list[Action]]] = {
            NONLINEARITIES[name]: actions for name, actions in self.actions.items()
        }
        original = self.replaced or type(self.owner).forward.__get__(self.owner)
        # Exporters and Lightning's signature checks read these off a forward.
        self.__signature__ = inspect.signature(original)
        for name in ("__code__", "__globals__", "__doc__"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    def __getstate__(self) -> dict[str, Any]:
        # Built-in functions and code objects do not pickle; they are found again by name.
        names = ("owner", "path", "actions", "expected", "warned", "replaced")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._resolve()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the owner's forward within a frame."""
        frame = Frame(self.owner, self.path, self._by_function)
        depth = len(_FRAMES.stack)
        outer = _FRAMES.stack[-1] if depth else None
        if isinstance(outer, Frame) and outer.calls is self:
            frame.invocation = outer.invocation
        frame.calls = self.replaced
        _FRAMES.stack.append(frame)
        try:
            if not self._by_function:
                result = self._run(*args, **kwargs)
            else:
                with frame:
                    result = self._run(*args, **kwargs)
        finally:
            del _FRAMES.stack[depth:]
        if self.expected and not torch.compiler.is_compiling():
            self._compare_with_plan(frame)
        return result

    def _compare_with_plan(self, frame: Frame) -> None:
        """Warn once where the forward makes other calls than in the example: norms are matched by order."""
        for key, planned in self.expected.items():
            name = key if isinstance(key, str) else "a shared activation module"
            made = frame.counts.get(NONLINEARITIES[key] if isinstance(key, str) else key, 0)
            if made != planned and not self.warned:
                self.warned = True
                warnings.warn(
                    f"The forward of {self.path or 'the model'!r} called {name} {made} times, and {planned} times on "
                    "the example that batch norm was inserted with. Norms are matched to calls by their order, so they "
                    "may act on others than planned here. Insert with an example of the common path, give the calls "
                    "activation modules of their own, or exclude them.",
                    InsertionWarning,
                    stacklevel=3,
                )

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return type(self.owner).forward(self.owner, *args, **kwargs)


def suspend(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of a child module: what it calls is not its owner's call."""
    _FRAMES.stack.append(module)


def resume(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of a child module: back in the owner's code."""
    if _FRAMES.stack and _FRAMES.stack[-1] is module:
        _FRAMES.stack.pop()


def suspend_in_children(owner: nn.Module) -> list[RemovableHandle]:
    """Put `suspend` and `resume` on every child that could call a nonlinearity itself.

    Args:
        owner: The module whose own calls are to be counted.

    Returns:
        The handles of the hooks.
    """
    handles = []
    for child in _called_children(owner):
        handles.append(child.register_forward_pre_hook(suspend))
        handles.append(child.register_forward_hook(resume, always_call=True))
    return handles


def _called_children(owner: nn.Module) -> Iterator[nn.Module]:
    for name, child in owner.named_children():
        if name == CHILD_NAME:
            continue
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # these have no forward of their own
            yield from _called_children(child)
        elif any(True for _ in child.children()) or not _is_plain_layer(child):
            yield child


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether a leaf is a layer of torch that calls no nonlinearity; a hook on it would only cost time."""
    source = type(module).__module__
    return source.startswith("torch.nn.modules.") and not source.endswith((".activation", ".transformer", ".rnn"))
