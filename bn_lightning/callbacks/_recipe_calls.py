"""Find the calls of functional dropout and local response normalization in a training step.

Such a call takes its probability from the code around it, so nothing outside can remove it, short of looking at every
operation of every step. It is looked for in one step and named.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bn_lightning.callbacks._compat import LightningModule
from bn_lightning.callbacks._recipe_report import RecipeChange, written

_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)
_BUILTIN_DROPOUTS = (torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout)


def _of_python(probability: str, function: Callable[..., Any]) -> Callable[..., float]:
    signature = inspect.signature(function)

    def read(*args: Any, **kwargs: Any) -> float:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return float(given.arguments[probability]) if given.arguments["training"] else 0.0

    return read


def _of_builtin(input: Any, p: float, train: bool) -> float:
    return p if train else 0.0


def _of_attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, **_: Any) -> float:
    return dropout_p


_PROBABILITY: dict[Any, Callable[..., float]] = {
    **{function: _of_python("p", function) for function in _DROPOUTS},
    **dict.fromkeys(_BUILTIN_DROPOUTS, _of_builtin),
    F.multi_head_attention_forward: _of_python("dropout_p", F.multi_head_attention_forward),
    F.scaled_dot_product_attention: _of_attention,
}


class FunctionalCalls(TorchFunctionMode):
    """Notes, while it is entered, each call that drops values or normalises local responses.

    Args:
        model: Whose calls these are; its modules' paths are used to name them.
        dropout: Whether to look for dropout.
        local_response_norm: Whether to look for local response normalization.
    """

    def __init__(self, model: nn.Module, *, dropout: bool, local_response_norm: bool) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._dropout, self._local_response_norm = dropout, local_response_norm
        self.found: dict[tuple[str, str], RecipeChange] = {}
        self.stop: Callable[[], None] = lambda: None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._local_response_norm and func is F.local_response_norm:
            self._note("remove_local_response_norm", func, "")
        elif self._dropout and func in _PROBABILITY and (probability := _PROBABILITY[func](*args, **kwargs)):
            self._note("remove_dropout", func, f"p={written(probability)} ")
        return func(*args, **kwargs)

    def _note(self, item: str, func: Any, setting: str) -> None:
        path, place = self._caller()
        name = f"{path or 'the LightningModule'}, {func.__name__}"
        change = RecipeChange(item, name, f"{setting}at {place}", "left: a functional call", left=True)
        self.found[name, place] = change

    def _caller(self) -> tuple[str, str]:
        """The nearest module on the stack, and the line of its code."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        return "", "an unknown line"


def watch_training_step(
    module: "LightningModule", *, dropout: bool, local_response_norm: bool, undo: Callable[[Callable[[], None]], object]
) -> FunctionalCalls:
    """Watch the training step of a module until the watcher is told to `stop()`.

    Args:
        module: Its `training_step` is replaced on the instance.
        dropout: Whether to look for dropout.
        local_response_norm: Whether to look for local response normalization.
        undo: Is given what takes the replacement out.

    Returns:
        What will have found the calls.
    """
    calls = FunctionalCalls(module, dropout=dropout, local_response_norm=local_response_norm)
    attributes, original = vars(module), module.training_step
    replaced, watching = attributes.get("training_step"), True

    def training_step(*args: Any, **kwargs: Any) -> Any:
        with calls if watching else nullcontext():
            return original(*args, **kwargs)

    def stop() -> None:
        nonlocal watching
        watching = False
        # Gone as soon as it can be: copies of the module would keep it and run the original's step.
        if attributes.get("training_step") is training_step:
            del attributes["training_step"]
            if replaced is not None:
                attributes["training_step"] = replaced

    attributes["training_step"], calls.stop = training_step, stop
    undo(stop)
    return calls


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of the model is compiled, so that its calls cannot be watched without compiling it anew.

    Args:
        model: A LightningModule.

    Returns:
        True if the model, one of its modules or its training step is compiled.
    """
    if getattr(model, "_compiler_ctx", None) is not None:
        return True
    return any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None for m in model.modules())
