"""Put inserted norms that no layer can take into a model in plain torch.

Nothing here leaves a class or function of this package in the model: a norm stands as itself or as a
graph of torch operations, beside its activation module, as a hook of its layer
or in the rewritten forward of its owner.
"""

import itertools
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import FoldingError
from bn_lightning.surgery.folding.fold_layers import affine_of
from bn_lightning.surgery.folding.fold_plan import KeptNorm
from bn_lightning.surgery.plan import Site
from bn_lightning.surgery.running.norms import InsertedNorms
from bn_lightning.surgery.tracing.ops import FULL_NAMES


def frozen_norm(model: nn.Module, kept: KeptNorm) -> nn.Module:
    """An inserted norm as a module of torch that stands alone.

    Args:
        model: The model that carries it.
        kept: Its entry in the plan.

    Returns:
        The norm itself where it takes its input as it comes, else a module that scales and shifts along their axis.
    """
    norm, site = model.get_submodule(kept.norm), kept.site
    if takes_input_as_it_comes(model, kept.norm, site):
        return norm
    assert site is not None  # noqa: S101 - a norm written by hand takes its input as it comes
    assert isinstance(norm, _BatchNorm)  # noqa: S101 - the plan keeps no other one there
    like = norm.running_mean if norm.weight is None else norm.weight
    assert isinstance(like, Tensor)  # noqa: S101 - without it there would be no affine map
    held = nn.Module()
    for name, values in zip(("scale", "shift"), affine_of(norm), strict=True):
        shaped = values.view(-1, *[1] * (-site.channel_dim - 1))
        held.register_buffer(name, shaped.to(device=like.device, dtype=like.dtype))
    graph = fx.Graph()
    x = graph.placeholder("x")
    scale, shift = graph.get_attr("scale"), graph.get_attr("shift")
    graph.output(graph.call_function(torch.addcmul, (shift, x, scale)))
    return fx.GraphModule(held, graph, "FrozenNorm")


def takes_input_as_it_comes(model: nn.Module, path: str, site: Site | None) -> bool:
    """Whether a norm can be handed what stands at its site, rather than that with its axes rearranged.

    Args:
        model: The model that carries it.
        path: Its path.
        site: Its site; None for a norm written by hand.

    Returns:
        True if so.
    """
    if site is None:
        return True
    parent, _, number = path.rpartition(".")
    norms = model.get_submodule(parent)
    assert isinstance(norms, InsertedNorms)  # noqa: S101 - the site says so
    return norms.slots[int(number)].direct == len(site.shape)


def pair_with_activation(activation: nn.Module, kept: KeptNorm, norm: nn.Module) -> nn.Module:
    """An activation module and its norm, one behind the other.

    Args:
        activation: The activation module.
        kept: The norm's entry in the plan.
        norm: What stands for the norm.

    Returns:
        A container of both.
    """
    return nn.Sequential(*((activation, norm) if kept.after else (norm, activation))).eval()


def hang_on_layer(layer: nn.Module, norm: nn.Module, *, on_input: bool) -> None:
    """Apply a norm to what a layer reads or returns, by a hook that is a module of torch.

    The layer stays what it is, since code around it may read its attributes, and the norm becomes its child.

    Args:
        layer: The layer; changed in place.
        norm: What stands for the norm.
        on_input: Whether it acts on the layer's first argument, rather than on its output.
    """
    graph = fx.Graph()
    received = [graph.placeholder(name) for name in ("module", "args", *(() if on_input else ("output",)))]
    x = graph.call_function(operator.getitem, (received[1], 0)) if on_input else received[2]
    graph.output(graph.call_module("norm", (x,)))
    hook = fx.GraphModule({"norm": norm}, graph, "FrozenNormHook").eval()
    layer.add_module(_free_name(layer), hook)
    if on_input:
        layer.register_forward_pre_hook(hook)
    else:
        layer.register_forward_hook(hook)


def rewrite_owner(owner: nn.Module, norms: list[tuple[KeptNorm, str | nn.Module, nn.Module]]) -> nn.Module:
    """An owner whose own code calls nonlinearities, as a graph in which norms stand at these calls.

    The graph is that of evaluation mode. Child modules stay what they are, under their names.

    Args:
        owner: The module, in evaluation mode and without inserted norms.
        norms: For each norm its entry in the plan, the full name of the function or the activation module at whose
            call it acts, and what stands for it.

    Returns:
        A module of torch's with the owner's children and parameters.

    Raises:
        FoldingError: If the owner's code cannot be written down as a graph, or makes fewer calls in it.
    """
    try:
        traced = _ChildrenAsLeaves().trace(owner)
        # A graph remembers its tracer's class, which could not be loaded without this package.
        graph = fx.Graph()
        graph.output(graph.graph_copy(traced, {}))
        _put_in(graph, owner, norms)
        return fx.GraphModule(owner, graph, type(owner).__name__).eval()
    except Exception as error:
        lines = "\n".join(f"  {kept.norm}: {kept.reason}" for kept, _, _ in norms)
        raise FoldingError(
            f"No layer can take these norms:\n{lines}\nand the forward of {type(owner).__name__}, where they act, "
            f"cannot be rewritten as a graph with them in it: {error} Give its nonlinearities activation modules of "
            "their own before inserting norms, exclude them, or keep them with fold_batch_norm(..., partial=True), "
            "whose result needs bn_lightning to run."
        ) from error


def _put_in(graph: fx.Graph, owner: nn.Module, norms: list[tuple[KeptNorm, str | nn.Module, nn.Module]]) -> None:
    calls = _calls(graph, owner)
    for kept, called, norm in norms:
        assert kept.site is not None  # noqa: S101 - only inserted norms act on calls
        if kept.site.call_index >= len(calls.get(called, ())):
            raise IndexError(f"it lacks call {kept.site.call_index} of {kept.site.op}, which the example made.")
        name = _free_name(owner)
        owner.add_module(name, norm)
        _insert(graph, calls[called][kept.site.call_index], name, after=kept.after)


def _free_name(owner: nn.Module) -> str:
    return next(name for n in itertools.count() if not hasattr(owner, name := f"frozen_norm_{n}"))


class _ChildrenAsLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _calls(graph: fx.Graph, owner: nn.Module) -> dict[str | nn.Module, list[fx.Node]]:
    """The calls of each function, by its full name, and of each child module, in order."""
    found: dict[str | nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        key: str | nn.Module = str(node.target)
        if node.op == "call_function":
            key = FULL_NAMES.get(node.target, str(node.target))
        elif node.op == "call_method":
            key = f"torch.Tensor.{node.target}"
        elif node.op == "call_module":
            # Not by name: one activation module may have another name in each owner that calls it.
            key = owner.get_submodule(str(node.target))
        found.setdefault(key, []).append(node)
    return found


def _insert(graph: fx.Graph, call: fx.Node, name: str, *, after: bool) -> None:
    if after:
        with graph.inserting_after(call):
            norm = graph.call_module(name)
        call.replace_all_uses_with(norm)
        norm.args = (call,)
        return
    with graph.inserting_before(call):
        norm = graph.call_module(name, (call.all_input_nodes[0],))
    call.replace_input_with(call.all_input_nodes[0], norm)
