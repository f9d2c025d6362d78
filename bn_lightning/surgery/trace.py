"""Run a model once and write down its calls: what each nonlinearity received and who made that.

The model runs as it is, under a function mode that sees every torch call and hooks that see every
module call. So control flow, functional calls and in-place operations are met as they happen; only
executed paths are seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from bn_lightning.surgery import axes, ops
from bn_lightning.surgery.graph import CHILD_NAME, Call, Node, Trace
from bn_lightning.surgery.sandbox import sandbox

_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


@dataclass
class _Frame:
    path: str
    module: nn.Module
    start: int
    inputs: list[Tensor]
    counts: dict[Any, int] = field(default_factory=dict)

    def next_index(self, key: Any) -> int:
        index = self.counts.get(key, 0)
        self.counts[key] = index + 1
        return index


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.frames: list[_Frame] = []
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.outside: dict[str, int] = {}
        self.returned: set[tuple[str, int]] = set()
        self._origin: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def node_of(self, tensor: Tensor) -> int:
        """The node that made `tensor`; a tensor not seen before becomes an input or a parameter."""
        index = self._origin.get(tensor)
        if index is None:
            name = self.parameter_names.get(id(tensor))
            role = "input" if name is None and not isinstance(tensor, nn.Parameter) else "parameter"
            index = self.add(tensor, role, role, (), layer=(name or "").removesuffix(".weight"))
        return index

    def add(self, result: Tensor, role: str, op: str, inputs: tuple[int, ...], **details: Any) -> int:
        index = len(self.nodes)
        owner = self.frames[-1].path if self.frames else None
        node = Node(index, role, op, inputs, owner, tuple(result.shape), details.pop("channel_dim", None), **details)
        self.nodes.append(replace(node, is_floating=result.is_floating_point()))
        self._origin[result] = index
        return index

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        # Looked up before the call: an in-place operation makes its input the result.
        inputs = tuple(self.node_of(tensor) for tensor in tensors)
        layouts = [
            (tuple(tensor.shape), self.nodes[index].channel_dim) for tensor, index in zip(tensors, inputs, strict=True)
        ]
        op = ops.bare_name(function)
        role = ops.ROLES.get(op, "loss" if op.endswith("_loss") else "other")
        moved: list[int | None] = []
        if role == "shape" and len(tensors) > 1:
            role = "join"  # as torch.max(a, b)
        if role == "shape" and layouts and layouts[0][1] is not None:
            moved = axes.through_shape_op(function, tensors[0], layouts[0][1], args, kwargs)
        result = function(*args, **kwargs)
        if op == "setitem" and tensors:
            self.add(tensors[0], "join", op, inputs, channel_dim=layouts[0][1])
            return result
        for position, tensor in enumerate(_tensors(result)):
            self._add_result(tensor, function, role, op, inputs, layouts, moved[position : position + 1])
        return result

    def _add_result(
        self,
        result: Tensor,
        function: Callable[..., Any],
        role: str,
        op: str,
        inputs: tuple[int, ...],
        layouts: list[axes.Layout],
        moved: list[int | None],
    ) -> None:
        shape = tuple(result.shape)
        details: dict[str, Any] = {}
        operands = [self.nodes[index].role for index in inputs]
        if operands and set(operands) == {"parameter"}:
            role = "parameter"  # a weight being prepared (transposed, normalised) is still a weight
        elif role == "matmul" and "parameter" in operands:
            role = "affine"
            # x @ W writes W's columns as channels on the last axis; W @ x on the last but one. The functions
            # that add take the summand first; what an equation of einsum does is not read.
            factor = operands[1 if op.startswith(("add", "badd")) else 0]
            details["channel_dim"] = -2 if factor == "parameter" and len(shape) > 1 else -1
            if op in ("einsum", "tensordot"):
                details["channel_dim"] = None
        elif role == "affine":
            details["channel_dim"] = axes.of_affine(op, shape)
        elif role == "norm":
            details["channel_dim"] = axes.of_norm(op, shape)
        elif role == "shape":
            details["channel_dim"] = moved[0] if moved else None
        elif op in ("cat", "concat", "concatenate"):
            details["channel_dim"] = axes.of_concatenation(shape, layouts)
        else:
            details["channel_dim"] = axes.of_elementwise(shape, layouts)
        if role == "affine":
            details["layer"] = self._layer_name(inputs)
        if role == "nonlinearity" and function in ops.FULL_NAMES:
            details["call"] = self._call_of_function(ops.FULL_NAMES[function])
        self.add(result, role, op, inputs, **details)

    def _layer_name(self, inputs: tuple[int, ...]) -> str:
        """The running module where that is a layer of torch, else the module or parameter of the weight."""
        if self.frames and isinstance(self.frames[-1].module, _LAYERS):
            return self.frames[-1].path
        for index in inputs:
            if self.nodes[index].role == "parameter" and self.nodes[index].layer:
                return self.nodes[index].layer
        return self.frames[-1].path if self.frames else ""

    def _call_of_function(self, function: str) -> Call:
        if not self.frames:
            index = self.outside.get(function, 0)
            self.outside[function] = index + 1
            return Call(None, function, None, index)
        frame = self.frames[-1]
        return Call(frame.path, function, None, frame.next_index(function))

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Open the frame of a module call; a forward pre-hook."""
        tensors = _tensors((args, kwargs))
        for tensor in tensors:
            self.node_of(tensor)
        self.frames.append(_Frame(self.paths[module], module, len(self.nodes), tensors))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Close the frame of a module call; a forward hook."""
        frame = self.frames.pop()
        outputs = _tensors(output)
        if frame.path and self._is_activation_unit(frame, outputs):
            self._collapse(frame, outputs[0])
            return
        inputs = tuple(self.node_of(tensor) for tensor in frame.inputs)
        for tensor in outputs:
            if self._origin.get(tensor) is None:  # made where no torch function was seen, as by custom autograd
                self.add(tensor, "opaque", type(module).__name__.lower(), inputs)
            self.returned.add((frame.path, self.node_of(tensor)))

    def _is_activation_unit(self, frame: _Frame, outputs: list[Tensor]) -> bool:
        """Whether a module is one activation: a leaf without parameters (or PReLU) of unchanged shape.

        Norms inserted under it do not count: they ran before the frame was opened, or run after it is closed.
        """
        module = frame.module
        plain = isinstance(module, nn.PReLU) or not any(True for _ in module.parameters(recurse=False))
        leaf = all(name == CHILD_NAME for name, _ in module.named_children())
        inner = self.nodes[frame.start :]
        return (
            plain
            and leaf
            and len(frame.inputs) == len(outputs) == 1
            and frame.inputs[0].shape == outputs[0].shape
            and any(node.role == "nonlinearity" for node in inner)
        )

    def _collapse(self, frame: _Frame, output: Tensor) -> None:
        inner = self.nodes[frame.start :]
        source = next(node.inputs[0] for node in inner if node.inputs and node.inputs[0] < frame.start)
        for node in inner:
            if node.role not in ("parameter", "input"):
                self.nodes[node.index] = replace(node, role="inner", inputs=(), call=None)
        owner = self.frames[-1] if self.frames else None
        index = owner.next_index(frame.module) if owner else 0
        call = Call(owner.path if owner else None, "", frame.path, index)
        names = [node.op for node in inner if node.role not in ("parameter", "input")]
        op = names[0] if len(names) == 1 else type(frame.module).__name__.lower()
        channel_dim = self.nodes[source].channel_dim
        self.add(output, "nonlinearity", op, (source,), channel_dim=channel_dim, call=call)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def trace_calls(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Write down every operation of one run of `model`.

    The model runs in the modes it is in, without gradients, and in eager mode even where parts of it
    are compiled. Afterwards modes, buffers, gradients and random state are as before.

    Args:
        model: The module whose calls are to be seen.
        run: Runs it, such as ``lambda: model(x)``; its result marks the outputs.

    Returns:
        The trace.

    Raises:
        ValueError: If a lazy layer of the model has not been initialised.

    Example:
        >>> import torch
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.zeros(4, 3)
        >>> nodes = trace_calls(model, lambda: model(x)).nodes
        >>> [(node.op, node.layer) for node in nodes if node.role in ("affine", "nonlinearity")]
        [('linear', '0'), ('relu', '')]
    """
    lazy = [path for path, module in model.named_modules() if _is_lazy(module)]
    if lazy:
        raise ValueError(
            f"The layers {', '.join(map(repr, lazy))} are lazy and have no parameters yet; run the model on a batch "
            "once, so that they are made, before it is traced."
        )
    recorder = _Recorder(model)
    with sandbox(model), torch.no_grad(), _eager(), _module_hooks(model, recorder), recorder:
        output = run()
    reached = frozenset(recorder.node_of(tensor) for tensor in _tensors(output))
    consumers: dict[int, list[int]] = {}
    for node in recorder.nodes:
        for source in dict.fromkeys(node.inputs):
            consumers.setdefault(source, []).append(node.index)
    users_of = {index: tuple(users) for index, users in consumers.items()}
    return Trace(tuple(recorder.nodes), reached, users_of, frozenset(recorder.returned))


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


@contextmanager
def _eager() -> Iterator[None]:
    # Compiled code would run without the Python calls that are to be seen.
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _module_hooks(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
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
