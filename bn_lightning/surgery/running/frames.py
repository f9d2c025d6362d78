"""Meet the n-th call of a function in one module's own forward.

A module's forward is replaced by an `OwnerForward`, which opens a frame for the call. Within it the
calls of a nonlinearity are counted, those made inside child modules excepted: these suspend the
frame.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from bn_lightning.errors import CheckpointedCallError
from bn_lightning.surgery.running.expected_calls import ExpectedCalls
from bn_lightning.surgery.tracing.call_stack import is_checkpointed, surroundings
from bn_lightning.surgery.tracing.graph import CHILD_NAME


class Action(Protocol):
    """What to do around one call of a nonlinearity."""

    def for_owner(self, owner: nn.Module) -> "Action":
        """The same action for a replica of its owner; itself where it does not depend on the owner."""
        return self

    def before(self, preactivation: Tensor) -> Tensor:
        """Return what the nonlinearity receives."""
        ...

    def after(self, activation: Tensor) -> Tensor:
        """Return what its caller receives."""
        ...


class StandIn(Protocol):
    """What opens a frame: the stand-in for the forward of an owner."""

    path: str


class _Running(threading.local):
    def __init__(self) -> None:
        self.stack: list[Frame | nn.Module] = []


RUNNING = _Running()
"""The frames and suspending modules of each thread, innermost last."""


UNFORESEEN: dict[int, list[Action]] = {}
"""Stands for the actions of a nonlinearity that the plan does not know; told by what it is, not what it holds."""


class Frame(TorchFunctionMode):
    """One running forward of an owner; counts its calls and applies actions to them.

    Args:
        stand_in: What opens it, which knows the path of the owner when the plan was made.
        actions: For each function, the actions by number of the call.
        expected: The calls that were planned for.
    """

    def __init__(
        self,
        stand_in: StandIn,
        actions: dict[Callable[..., Any], dict[int, list[Action]]],
        expected: ExpectedCalls | None = None,
    ) -> None:
        super().__init__()
        self._stand_in = stand_in
        self.actions = actions
        self.expected = expected
        self.has_gradients = torch.is_grad_enabled()
        self.counts: dict[Any, int] = {}
        self.hidden: dict[Any, int] = {}
        """How many of the last calls were made inside an autograd function, where the plan has no sites."""
        # Stand-ins around one another share a call of the owner; a recursive call is another one.
        self.invocation: object = self
        self.calls: Any = None

    @property
    def path(self) -> str:
        """Path of the owner when the plan was made."""
        # Read where it is needed alone: torch.compile binds a graph to what it reads, and owners of one class, such as
        # the blocks of a network, would each be compiled anew, until its limit.
        return self._stand_in.path

    def next_index(self, key: Any) -> int:
        """Count one more call of `key`; how many came before."""
        index = self.counts.get(key, 0)
        self.counts[key] = index + 1
        return index

    @property
    def seen(self) -> dict[Any, int]:
        """The counts as a plan knows them, which ends with the last call that is a site."""
        return {key: count - self.hidden.get(key, 0) for key, count in self.counts.items()}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        actions = self.actions.get(function)
        if actions is None or not self._is_running():
            return function(*args, **kwargs)
        here = actions.get(self.next_index(function))
        if here is None:
            self._meet(function, is_unforeseen=actions is UNFORESEEN)
            return function(*args, **kwargs)
        self.hidden.pop(function, None)
        self.refuse_checkpoint(module_calls=0)
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

    def _meet(self, function: Callable[..., Any], *, is_unforeseen: bool) -> None:
        """Take note of a call without a norm, and warn if the plan does not know its function."""
        if self.expected is None or is_compiling():
            return
        # An autograd function runs its forward without gradients; the look at the stack is for that case only.
        if not torch.is_grad_enabled() and surroundings(module_calls=0).in_autograd_function:
            self.hidden[function] = self.hidden.get(function, 0) + 1
            return
        self.hidden.pop(function, None)
        if is_unforeseen:
            self.expected.meet(function)

    def refuse_checkpoint(self, *, module_calls: int) -> None:
        """Raise if the running call will be computed again after this frame has closed.

        Args:
            module_calls: As for `is_checkpointed`.

        Raises:
            CheckpointedCallError: If it runs within a reentrant gradient checkpoint that the owner's own code opened.
        """
        # A reentrant checkpoint runs its function without gradients; the search is for that case only.
        lost_gradients = self.has_gradients and not torch.is_grad_enabled()
        if lost_gradients and not is_compiling() and is_checkpointed(module_calls=module_calls):
            raise CheckpointedCallError(
                f"The forward of {self.path or 'the model'!r} calls a nonlinearity with an inserted norm within "
                "torch.utils.checkpoint(..., use_reentrant=True). Its backward pass would compute that call again "
                "without the norm, and gradients would be wrong. Put the checkpointed code into a module of its own "
                "and checkpoint that, or plan again with checkpointing on, which leaves these calls alone."
            )

    def _is_running(self) -> bool:
        top = RUNNING.stack[-1] if RUNNING.stack else None
        return isinstance(top, Frame) and top.invocation is self.invocation


def calling_frame(module: nn.Module) -> Frame | None:
    """The frame of the owner whose own code calls `module` now; for the hooks of that module.

    Args:
        module: The module whose hook asks.

    Returns:
        The frame; None where the caller is no owner.
    """
    depth = len(RUNNING.stack)
    while depth and RUNNING.stack[depth - 1] is module:
        depth -= 1
    top = RUNNING.stack[depth - 1] if depth else None
    return top if isinstance(top, Frame) else None


def suspend(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of a child module: what it calls is not its owner's call."""
    RUNNING.stack.append(module)


def resume(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of a child module: back in the owner's code."""
    if RUNNING.stack and RUNNING.stack[-1] is module:
        RUNNING.stack.pop()


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
