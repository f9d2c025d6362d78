"""Stand in for a module's forward and open a frame for each call.

Everything here is a plain object or a module-level function, so models stay copyable, picklable and compilable.
"""

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.running.expected_calls import ExpectedCalls
from bn_lightning.surgery.running.frames import RUNNING, UNFORESEEN, Action, Frame
from bn_lightning.surgery.running.symbolic_tracing import refuse_symbolic_values
from bn_lightning.surgery.tracing.ops import NONLINEARITIES, UNSEEN_BY_COMPILER


class OwnerForward:
    """Stands in for the forward of an owner and opens a frame for each call.

    Args:
        owner: The module.
        path: Its path when the plan was made.
        actions: For each full function name of `ops.NONLINEARITIES`, the actions by number of the call.
        expected: The calls that were planned for; None where they do not matter.
    """

    def __init__(
        self,
        owner: nn.Module,
        path: str,
        actions: dict[str, dict[int, list[Action]]],
        expected: ExpectedCalls | None = None,
    ) -> None:
        self.owner = owner
        self.path = path
        self.actions = actions
        self.expected = expected
        self.replaced = owner.__dict__.get("forward")
        self._resolve()

    def restore(self) -> None:
        """Take this stand-in out again, also from under others that came later.

        Where somebody else's code still calls it, it does nothing but call the forward it replaced.
        """
        self.actions.clear()
        self._by_function.clear()
        self.expected = None
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

    def for_owner(self, owner: nn.Module) -> "OwnerForward":
        """The same stand-in for a replica of the owner, with those that it wraps.

        Args:
            owner: The replica.

        Returns:
            A new stand-in; what was counted and warned of is shared.
        """
        moved = copy.copy(self)
        moved.owner = owner
        if isinstance(self.replaced, OwnerForward):
            moved.replaced = self.replaced.for_owner(owner)
        moved.actions = {
            name: {index: [action.for_owner(owner) for action in actions] for index, actions in calls.items()}
            for name, calls in self.actions.items()
        }
        moved._find_functions()
        return moved

    def _resolve(self) -> None:
        self._find_functions()
        original = self.replaced or type(self.owner).forward.__get__(self.owner)
        # Exporters and Lightning's signature checks read these off a forward.
        self.__signature__ = inspect.signature(original)
        for name in ("__code__", "__globals__", "__doc__"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    def _find_functions(self) -> None:
        self._by_function: dict[Any, dict[int, list[Action]]] = {
            NONLINEARITIES[name]: actions for name, actions in self.actions.items()
        }
        # Without functions to act on there is no mode either, which would cost time only to look for others.
        if self.expected is not None and self._by_function:
            for function in self.expected.unforeseen():
                self._by_function.setdefault(function, UNFORESEEN)

    def __copy__(self) -> "OwnerForward":
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # Built-in functions and code objects do not pickle; they are found again by name.
        return {name: self.__dict__[name] for name in ("owner", "path", "actions", "expected", "replaced")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._resolve()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the owner's forward within a frame."""
        if not is_compiling():
            refuse_symbolic_values(self.owner, args, kwargs)
        elif not UNSEEN_BY_COMPILER.isdisjoint(self.actions):
            return _run_uncompiled(self, args, kwargs)
        return self._run_in_frame(args, kwargs)

    def _run_in_frame(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = Frame(self, self._by_function, self.expected)
        depth = len(RUNNING.stack)
        outer = RUNNING.stack[-1] if depth else None
        if isinstance(outer, Frame) and outer.calls is self:
            frame.invocation = outer.invocation
        frame.calls = self.replaced
        RUNNING.stack.append(frame)
        try:
            if not self._by_function:
                result = self._run(*args, **kwargs)
            else:
                with frame:
                    result = self._run(*args, **kwargs)
        finally:
            del RUNNING.stack[depth:]
        if self.expected is not None and not is_compiling():
            self.expected.compare(frame.seen)
        return result

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return type(self.owner).forward(self.owner, *args, **kwargs)


def _warn_and_run(forward: OwnerForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    owner = repr(forward.path) if forward.path else "the model"
    unseen = sorted(UNSEEN_BY_COMPILER.intersection(forward.actions))
    # The text says which module, so that Python's own filter lets it through once for each.
    warnings.warn(
        f"The forward of {owner} runs uncompiled: torch.compile does not let "
        f"{', '.join(unseen)} be intercepted, and its norm would be lost. Call an activation module there to have it "
        "compiled.",
        InsertionWarning,
        stacklevel=2,
    )
    return forward._run_in_frame(args, kwargs)


_run_uncompiled: Callable[[OwnerForward, tuple[Any, ...], dict[str, Any]], Any] = torch.compiler.disable(
    _warn_and_run, reason="it calls a nonlinearity with an inserted norm that torch.compile lets nobody intercept"
)
