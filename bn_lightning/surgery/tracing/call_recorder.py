"""The function mode and the module hooks' ends that write down what a model calls."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from bn_lightning.surgery.tracing import attention, axes, hand_norms, ops, rectifiers
from bn_lightning.surgery.tracing.call_stack import surroundings
from bn_lightning.surgery.tracing.graph import Call, Node
from bn_lightning.surgery.tracing.module_frame import FIXED, ModuleFrame, names_within
from bn_lightning.surgery.tracing.operation import Operation
from bn_lightning.surgery.tracing.received import Received

_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
_COMPUTING = ("affine", "matmul", "norm")
_UNCOUNTED = ("input", *FIXED)
_SCALARS = (int, float, str, type(None), torch.dtype, torch.device, nn.Module)


class CallRecorder(TorchFunctionMode):
    """Turns the calls of one model into nodes.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.frames: list[ModuleFrame] = []
        self.paths = {module: path for path, module in model.named_modules()}
        self.parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        # Held, so that no other tensor takes over the identity of one that the forward replaces.
        self._kept = {id(tensor): tensor for module in model.modules() for tensor in tensors_in(vars(module))}
        self.received = Received()
        self.outside: dict[Any, int] = {}
        self.returned: set[tuple[str, int]] = set()
        self.run = -1
        self._origin: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def start_run(self) -> None:
        """Begin another run: what it reads was made in no earlier one, and calls are counted anew."""
        self.run += 1
        self.outside.clear()
        self.frames.clear()
        self._origin = WeakTensorKeyDictionary()

    def node_of(self, tensor: Tensor) -> int:
        """The node that made `tensor`; a tensor not seen before becomes an input, a parameter or a constant."""
        index = self._origin.get(tensor)
        if index is None:
            name = self.parameter_names.get(id(tensor))
            is_parameter = name is not None or isinstance(tensor, nn.Parameter)
            role = "parameter" if is_parameter else "constant" if id(tensor) in self._kept else "input"
            if role == "input":
                self.received.keep(tensor)
            index = self.add(tensor, role, role, (), layer=(name or "").removesuffix(".weight").removesuffix(".bias"))
        return index

    def add(self, result: Tensor, role: str, op: str, inputs: tuple[int, ...], **details: Any) -> int:
        """Write down one operation and its result; the number of its node."""
        index = len(self.nodes)
        owner = self.frames[-1].path if self.frames else None
        details.setdefault("channel_dim", None)
        shape, is_floating = tuple(result.shape), result.is_floating_point()
        node = Node(index, role, op, inputs, owner, shape, is_floating=is_floating, run=self.run, **details)
        self.nodes.append(node)
        self._origin[result] = index
        return index

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        operation = self._operation(function, args, kwargs, tensors)
        selected = rectifiers.selected(operation.op, operation.inputs, self.nodes)
        # The values it is judged by are taken before an in-place operation overwrites them.
        preactivation = None if selected is None else tensors[operation.inputs.index(selected)].clone()
        result = function(*args, **kwargs)
        if operation.op == "setitem" and tensors:
            self.add(tensors[0], "join", "setitem", operation.inputs, channel_dim=operation.layouts[0][1])
            return result
        if selected is not None and preactivation is not None and isinstance(result, Tensor):
            name = rectifiers.name_of(operation.op, preactivation, result)
            if name:
                others = [
                    index
                    for index in operation.inputs
                    if index != selected and not rectifiers.is_fixed(self.nodes[index])
                ]
                operation = replace(operation, op=name, role="nonlinearity", inputs=(selected, *others), in_call=False)
        for position, tensor in enumerate(tensors_in(result)):
            self._add_result(tensor, operation, position)
        return result

    def _operation(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Operation:
        op = ops.bare_name(function)
        inputs = tuple(self.node_of(tensor) for tensor in tensors)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        layouts = [(shape, self.nodes[index].channel_dim) for shape, index in zip(shapes, inputs, strict=True)]
        role = ops.ROLES.get(op, "loss" if op.endswith("_loss") else "other")
        if not tensors or role == "constant":
            # Outside every forward it is the example that is made.
            role, inputs = "constant" if self.frames else "input", ()
        if role == "shape" and len(tensors) > 1:
            role = "join"  # as torch.max(a, b)
        rectified = rectifiers.called(op, args, kwargs, self._is_constant)
        in_call = True
        if rectified is not None:
            first = args[0] if args else kwargs.get("input")
            op, data = rectified
            role, inputs, in_call = "nonlinearity", (self.node_of(data),), data is first
        moved: list[int | None] = []
        if role == "shape" and layouts and layouts[0][1] is not None:
            moved = axes.through_shape_op(function, tensors[0], layouts[0][1], args, kwargs)
        causal = attention.is_causal(op, args, kwargs)
        index = self._count(function)
        return Operation(function, op, role, args, kwargs, inputs, layouts, index, moved, causal, in_call)

    def _is_constant(self, tensor: Tensor) -> bool:
        node = self.nodes[self.node_of(tensor)]
        return node.role != "parameter" and rectifiers.is_fixed(node)

    def _count(self, function: Callable[..., Any]) -> int:
        # Every call counts, whether or not it is a nonlinearity here: so it does where it is met again.
        counts = self.frames[-1].counts if self.frames else self.outside
        index = counts.get(function, 0)
        if getattr(function, "__name__", "") != "__get__":  # a property's getter is a new object each time
            counts[function] = index + 1
        return index

    def _add_result(self, result: Tensor, operation: Operation, position: int) -> None:
        op, role, inputs = operation.op, operation.role, operation.inputs
        operands = [self.nodes[index].role for index in inputs]
        details: dict[str, Any] = {"causal": operation.causal}
        fixed = "parameter" if set(operands) == {"parameter"} else "constant" if set(operands) <= set(FIXED) else ""
        if operands and (fixed == "parameter" or (fixed and role not in _COMPUTING)):
            if role == "nonlinearity":  # listed as a site, since its call is met again among the others
                self.add(result, role, op, inputs, **self._call_of(operation))
            # A weight being prepared (transposed, normalised, made by a layer) is still a weight.
            made = role in ("affine", "matmul")
            details["layer"] = self._layer_name(inputs) if made else self.nodes[inputs[0]].layer
            self.add(result, fixed, op, inputs, **details)
            return
        role = "affine" if role == "matmul" and "parameter" in operands else role
        details["channel_dim"] = operation.channel_dim(role, operands, tuple(result.shape), position)
        if role == "affine":
            details["layer"] = self._layer_name(inputs)
        if role == "nonlinearity":
            details |= self._call_of(operation)
        self.add(result, role, op, inputs, **details)

    def _call_of(self, operation: Operation) -> dict[str, Any]:
        """How the call of a nonlinearity can be met again; nothing where it cannot."""
        name = ops.FULL_NAMES.get(operation.function) if operation.in_call else f"torch.{operation.op}"
        around = surroundings(module_calls=0)
        # A norm inside a hand-written derivative would have none itself, so what happens there is no site.
        if name is None or around.in_autograd_function:
            return {}
        owner = self.frames[-1].path if self.frames else None
        call = Call(owner, name, None, operation.index, around.checkpointed)
        return {"call": call, "in_call": operation.in_call}

    def _layer_name(self, inputs: tuple[int, ...]) -> str:
        """The running module where that is a layer of torch, else the module or parameter of the weight."""
        if self.frames and isinstance(self.frames[-1].module, _LAYERS):
            return self.frames[-1].path
        for index in inputs:
            if self.nodes[index].role == "parameter" and self.nodes[index].layer:
                return self.nodes[index].layer
        return self.frames[-1].path if self.frames else ""

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Open the frame of a module call; a forward pre-hook."""
        tensors = tensors_in((args, kwargs))
        for tensor in tensors:
            self.node_of(tensor)
        self.frames.append(ModuleFrame(self.paths[module], module, len(self.nodes), tensors))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Close the frame of a module call; a forward hook."""
        frame = self.frames.pop()
        outputs = tensors_in(output)
        if frame.is_activation(self.nodes, outputs):
            self._collapse(frame, outputs[0])
            return
        made = self._origin.get(outputs[0], -1) if frame.path and frame.keeps_shape(outputs) else -1
        kind = hand_norms.norm_kind(module, self.nodes[frame.start :]) if made >= frame.start else ""
        if kind:
            self.nodes[made] = replace(self.nodes[made], role="norm", op=f"{kind}_norm")
        inputs = tuple(self.node_of(tensor) for tensor in frame.inputs)
        for tensor in outputs:
            if self._origin.get(tensor) is None:  # made where no torch function was seen, as by custom autograd
                self.add(tensor, "opaque", type(module).__name__.lower(), inputs)
            self.returned.add((frame.path, self.node_of(tensor)))

    def _collapse(self, frame: ModuleFrame, output: Tensor) -> None:
        inner = [node for node in self.nodes[frame.start :] if node.role not in _UNCOUNTED]
        source = next(node.inputs[0] for node in inner if node.inputs and node.inputs[0] < frame.start)
        op, names = names_within(frame.module, inner, self.nodes)
        for node in inner:
            self.nodes[node.index] = replace(node, role="inner", inputs=(), call=None)
        owner = self.frames[-1] if self.frames else None
        index = owner.next_index(frame.module) if owner else 0
        around = surroundings(module_calls=1)
        call = Call(owner.path if owner else None, "", frame.path, index, around.checkpointed)
        channel_dim = self.nodes[source].channel_dim
        self.add(output, "nonlinearity", op, (source,), channel_dim=channel_dim, call=call, inner=names)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested containers, in order."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Tensor]) -> None:
    # Most arguments are tensors and numbers in tuples; pytree, which knows every container, takes ten times as long.
    if isinstance(tree, Tensor):
        found.append(tree)
    elif type(tree) in (tuple, list):
        for item in tree:
            _collect(item, found)
    elif type(tree) is dict:
        for item in tree.values():
            _collect(item, found)
    elif not isinstance(tree, _SCALARS):
        found.extend(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
