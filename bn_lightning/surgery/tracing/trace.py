"""Run a model once and write down its calls: what each nonlinearity received and who made that.

The model runs as it is, under a function mode that sees every torch call and hooks that see every
module call. So control flow, functional calls and in-place operations are met as they happen; only
executed paths are seen.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bn_lightning.surgery.sandbox import sandbox
from bn_lightning.surgery.tracing.call_recorder import CallRecorder, tensors_in
from bn_lightning.surgery.tracing.graph import Trace
from bn_lightning.surgery.tracing.untraceable import check_traceable, meta_explained


def trace_calls(model: nn.Module, *runs: Callable[[], Any]) -> Trace:
    """Write down every operation of one or more runs of `model`.

    The model runs in the modes it is in, without gradients, and in eager mode even where parts of it
    are compiled. Afterwards modes, buffers, gradients and random state are as before, and so are the
    tensors that a run writes to in place.

    Args:
        model: The module whose calls are to be seen.
        runs: Each runs it, such as ``lambda: model(x)``; their results mark the outputs. Several runs show the
            paths that one example does not take.

    Returns:
        The trace.

    Raises:
        ValueError: If a layer is lazy, scripted or quantized, or parameters on the meta device make a run fail.

    Example:
        >>> import torch
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.zeros(4, 3)
        >>> nodes = trace_calls(model, lambda: model(x)).nodes
        >>> [(node.op, node.layer) for node in nodes if node.role in ("affine", "nonlinearity")]
        [('linear', '0'), ('relu', '')]
    """
    check_traceable(model)
    recorder = CallRecorder(model)
    reached: set[int] = set()
    for run in runs:
        recorder.start_run()
        with (
            sandbox(model),
            torch.no_grad(),
            meta_explained(model),
            recorder.received.restored(),
            _eager(),
            _module_hooks(model, recorder),
            recorder,
        ):
            output = run()
        reached.update(recorder.node_of(tensor) for tensor in tensors_in(output))
    consumers: dict[int, list[int]] = {}
    for node in recorder.nodes:
        for source in dict.fromkeys(node.inputs):
            consumers.setdefault(source, []).append(node.index)
    return Trace(
        nodes=tuple(recorder.nodes),
        outputs=frozenset(reached),
        consumers={index: tuple(users) for index, users in consumers.items()},
        returned=frozenset(recorder.returned),
    )


@contextmanager
def _eager() -> Iterator[None]:
    # Compiled code would run without the Python calls that are to be seen. And a checkpoint misses gradients that
    # tracing switches off.
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        yield


@contextmanager
def _module_hooks(model: nn.Module, recorder: CallRecorder) -> Iterator[None]:
    # Reading a shape in a hook must not be recorded as the model's doing.
    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            recorder.enter(module, args, kwargs)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            recorder.leave(module, args, kwargs, output)

    handles = []
    try:
        for module in model.modules():
            # Innermost of all hooks: norms inserted as hooks run outside the frame of the module that carries them.
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, prepend=True, with_kwargs=True, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
