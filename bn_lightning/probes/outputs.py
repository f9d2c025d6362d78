"""Find and hand over what chosen modules return: a tensor each, one for each call in a forward.

The channel axis is the last one behind `nn.Linear`, embeddings, layer norms and recurrent layers, and of
`[N, C]`; it is axis 1 of `[N, C, L]` and `[N, C, H, W]` behind convolutions, batch norms and poolings. Behind other
modules, such as activations, it is that of the module before which returned the same shape; where there is none,
axis 1 of four axes or more and the last of three.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.sites import matching_layers
from bn_lightning.surgery.sandbox import sandbox
from bn_lightning.surgery.tracing.graph import Trace
from bn_lightning.surgery.tracing.trace import trace_calls

Selector = str | type[nn.Module]
AFFINE = "affine"
ACTIVATION = "activation"
"""Words that stand for modules by what they compute, beside patterns and types."""

_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention)
_SPATIAL = tuple(
    getattr(nn, f"{kind}{axes}d")
    for kind in ("Conv", "ConvTranspose", "BatchNorm", "InstanceNorm", "MaxPool", "AvgPool", "AdaptiveAvgPool")
    for axes in (1, 2, 3)
)


@dataclass(frozen=True)
class Output:
    """What one call of a module returns.

    Attributes:
        path: Path of the module.
        call_index: How many calls of it come before in one forward; None where there is one only.
        channels: Length of the channel axis.
        channel_dim: The channel axis, counted from the end.
    """

    path: str
    call_index: int | None
    channels: int
    channel_dim: int

    @property
    def label(self) -> str:
        """The path, and from a second call on its number."""
        return self.path if not self.call_index else f"{self.path}-{self.call_index + 1}"


def find_outputs(
    model: nn.Module, layers: Selector | Sequence[Selector], run: Callable[[], Any], *, missing_ok: bool = False
) -> tuple[Output, ...]:
    """The outputs of the chosen modules that one run of the model meets, in the order of the forward.

    The run leaves no trace on the model. Of a tuple, list or dict the first floating-point tensor of two
    axes or more counts; a module that returns none, or did not run, has no output. Modules that the model builds
    in its first forward are found in a second one.

    Args:
        model: The model.
        layers: fnmatch patterns on the modules' paths, module types, and two words: "affine" stands for every module
            that multiplies by its own weights (linear and convolution layers, attention, a module of the user's that
            does so in its forward), "activation" for every module that is a nonlinearity (torch's own, and leaves
            without parameters that compute one). One, or several. A module that is itself called by such a word is
            chosen by a pattern that is none, such as "[a]ffine".
        run: Runs the model once; twice where a word stands among `layers`.
        missing_ok: Whether what selects nothing is passed over.

    Returns:
        The outputs.

    Raises:
        UnknownNameError: If a pattern, type or word selects no module that ran and returned such a tensor.
        ValueError: If a word stands among `layers` and the model cannot be traced (lazy or scripted layers).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        >>> x = torch.zeros(5, 3, 4, 4)
        >>> for output in find_outputs(model, [nn.ReLU, "3"], lambda: model(x)):
        ...     print(output.label, output.channels, output.channel_dim)
        1 8 -3
        3 2 -1
        >>> [output.label for output in find_outputs(model, "affine", lambda: model(x))]
        ['0', '3']
    """
    selectors = [layers] if isinstance(layers, str | type) else list(layers)
    before = set(model.modules())
    met = _met(model, run)
    if set(model.modules()) != before:
        met = _met(model, run)
    trace = trace_calls(model, run) if {AFFINE, ACTIVATION} & set(selectors) else None
    chosen = _selected(model, selectors, [path for path, _, _ in met], trace, missing_ok)
    calls: dict[str, int] = {}
    outputs = []
    for path, channels, axis in met:
        if path in chosen:
            index = calls[path] = calls.get(path, -1) + 1
            once = sum(other == path for other, _, _ in met) == 1
            outputs.append(Output(path, None if once else index, channels, axis))
    return tuple(outputs)


def _met(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, int, int]]:
    """Path, channels and channel axis of each tensor that a module returned, in the order of the forward."""
    met: list[tuple[str, int, int]] = []
    axes: dict[tuple[int, ...], int] = {}
    paths = {module: path for path, module in model.named_modules() if path}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found = tensor_of(output)
        if found is not None:
            axis = _channel_dim(module, found, axes)
            axes[tuple(found.shape)] = axis
            met.append((paths[module], found.shape[axis], axis))

    handles = [module.register_forward_hook(note) for module in paths]
    try:
        with sandbox(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return met


class OutputTaps:
    """Hooks that hand over the outputs of modules until `remove` is called.

    Args:
        model: The model.
        outputs: What `find_outputs` returned.
        receive: Called with the path, the position in `outputs`, the tensor and its channel axis.
    """

    def __init__(
        self, model: nn.Module, outputs: Sequence[Output], receive: Callable[[str, int, Tensor, int], None]
    ) -> None:
        self._calls: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        positions: dict[str, list[int]] = {}
        for position, output in enumerate(outputs):
            positions.setdefault(output.path, []).append(position)
        for path, places in positions.items():
            hook = self._hook(outputs, places, receive)
            self._handles.append(model.get_submodule(path).register_forward_hook(hook))

    def _hook(
        self, outputs: Sequence[Output], places: list[int], receive: Callable[[str, int, Tensor, int], None]
    ) -> Callable[..., None]:
        first = outputs[places[0]]

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            place = places[0]
            if first.call_index is not None:
                index = self._calls.get(first.path, 0)
                self._calls[first.path] = index + 1
                if index >= len(places):
                    return
                place = places[index]
            found = tensor_of(output)
            expected = outputs[place]
            if found is not None and found.shape[expected.channel_dim] == expected.channels:
                receive(first.path, place, found, expected.channel_dim)

        return hook

    def begin_forward(self) -> None:
        """Count the calls of modules that are called several times from 0 again."""
        self._calls.clear()

    def __enter__(self) -> "OutputTaps":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks out; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def tensor_of(output: Any) -> Tensor | None:
    """The first floating-point tensor of two axes or more in what a module returned."""
    leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
    return next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 1), None)


def _channel_dim(module: nn.Module, output: Tensor, met: Mapping[tuple[int, ...], int]) -> int:
    if isinstance(module, _LAST) or output.dim() == 2:
        return -1
    first = 1 - output.dim()
    return first if isinstance(module, _SPATIAL) else met.get(tuple(output.shape), first if output.dim() > 3 else -1)


def _selected(
    model: nn.Module, selectors: Sequence[Selector], ran: Sequence[str], trace: Trace | None, missing_ok: bool
) -> set[str]:
    chosen: set[str] = set()
    for selector in selectors:
        try:
            if isinstance(selector, type):
                chosen |= _of_type(model, selector, ran)
            elif trace is not None and selector in (AFFINE, ACTIVATION):
                chosen |= _of_role(trace, selector, ran)
            else:
                chosen |= matching_layers(selector, ran)
        except UnknownNameError:
            if not missing_ok:
                raise
    return chosen


def _of_type(model: nn.Module, kind: type[nn.Module], ran: Sequence[str]) -> set[str]:
    found = {path for path in ran if isinstance(model.get_submodule(path), kind)}
    if not found:
        kinds = sorted({type(model.get_submodule(path)).__name__ for path in ran})
        raise UnknownNameError(
            f"No module that ran and returned a tensor is a {kind.__name__}; there are {', '.join(kinds)}."
        )
    return found


def _of_role(trace: Trace, word: str, ran: Sequence[str]) -> set[str]:
    if word == AFFINE:
        layers = {node.layer for node in trace.nodes if node.role == "affine"}
        # A weight that is used as it is, under a name of its own, goes by that name; its module holds it.
        paths = layers | {layer.rpartition(".")[0] for layer in layers - set(ran)}
    else:
        paths = {node.call.activation or "" for node in trace.nodes if node.role == "nonlinearity" and node.call}
    found = paths & set(ran)
    if not found:
        calls = "multiplies by weights of its own" if word == AFFINE else "is a nonlinearity; functions have no module"
        raise UnknownNameError(f"layers={word!r} stands for no module here: none that ran {calls}.")
    return found
