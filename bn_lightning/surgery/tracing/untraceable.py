"""Refuse models whose calls cannot be seen or whose layers have no values yet, before anything runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

_QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized",
)


def check_traceable(model: nn.Module) -> None:
    """Refuse lazy, scripted and quantized layers.

    Args:
        model: The module to be traced.

    Raises:
        ValueError: If there is such a layer; the message names all of the first kind met.
    """
    lazy = _paths(model, _is_lazy)
    if lazy:
        raise ValueError(
            f"The layers {lazy} are lazy and have no parameters yet; run the model on a batch once, so that they are "
            "made, before it is traced."
        )
    scripted = _paths(model, lambda module: isinstance(module, torch.jit.ScriptModule))
    if scripted:
        raise ValueError(
            f"The modules {scripted} are TorchScript, whose calls cannot be seen from Python, so the model cannot be "
            "traced. Insert on the Python model; torch.jit.trace and torch.export take it with its norms, and "
            "torch.jit.script after fold_batch_norm, since it cannot compile the hooks that apply them."
        )
    quantized = _paths(model, lambda module: type(module).__module__.startswith(_QUANTIZED))
    if quantized:
        raise ValueError(
            f"The layers {quantized} are quantized and cannot be trained with a norm behind them. Insert norms in the "
            "float model, train it, fold them with fold_batch_norm, and quantize the result."
        )


@contextmanager
def meta_explained(model: nn.Module) -> Iterator[None]:
    """Say what is wrong where a run fails because the model's parameters hold no values.

    Args:
        model: The module that runs.

    Yields:
        Nothing.

    Raises:
        ValueError: If the run fails and parameters are on the meta device.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        names = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if not names:
            raise
        shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"The parameters {shown} are on the meta device and hold no values, and the run failed ({error}). Give the "
            "model values first (model.to_empty(device=...), then load or initialise), or trace it with an example "
            "on the meta device, if its forward does not ask for values."
        ) from error


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def _paths(model: nn.Module, is_wanted: Callable[[nn.Module], bool]) -> str:
    found: list[str] = []
    for path, module in model.named_modules():
        # The parts of what is named already say nothing more.
        if is_wanted(module) and not any(f"{path}.".startswith(f"{outer}.") or not outer for outer in found):
            found.append(path)
    return ", ".join(repr(path) if path else "the model itself" for path in found)
