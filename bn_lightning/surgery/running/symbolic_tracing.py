"""torch.fx would drop inserted norms without a word: notice it, and refuse.

`torch.fx.symbolic_trace` runs the class's forward of its root and never calls the layers it keeps as leaves, so
neither a stand-in on the root nor a hook on a leaf takes part. Hooks of leaves survive in the graph module, which
calls these layers as modules. Calls that a stand-in counts do not, and modules that are traced through are refused.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

STAND_IN_ATTRIBUTE = "_bn_lightning_forward"
"""Where a module keeps the stand-in for its forward that insertion put there."""


def untraceable(module: str) -> RuntimeError:
    """The error for a module that torch.fx cannot trace with its norms.

    Args:
        module: What it is called.

    Returns:
        The error.
    """
    return RuntimeError(
        f"torch.fx traces through {module}, and the norms inserted there would be missing from its graph. Export the "
        "model with torch.export.export(model, args), or trace the plain model and insert norms into what comes out."
    )


def refuse_symbolic_values(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Raise if a module is called by a torch.fx trace.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        RuntimeError: If they stand for tensors rather than being such.
    """
    tracing = _symbolic_trace._is_fx_tracing_flag
    if tracing and any(isinstance(leaf, torch.fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
        raise untraceable(type(module).__name__)


def refuse_as_root() -> None:
    """Raise if the modules being listed are those of a torch.fx tracer's root whose forward has a stand-in.

    To be called by a module within that root while `named_modules` lists it, which a tracer does first.

    Raises:
        RuntimeError: If it is a tracer that lists them.
    """
    root = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name == "named_modules":
        root = frame.f_locals.get("self")
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name in ("<dictcomp>", "modules"):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != _symbolic_trace.__name__ or not isinstance(root, nn.Module):
        return
    if STAND_IN_ATTRIBUTE in vars(root):
        raise untraceable(type(root).__name__)
