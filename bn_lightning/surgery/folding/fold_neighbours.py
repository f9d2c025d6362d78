"""Find for each norm of a traced model the affine layers that can take it, and nothing else than these."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from bn_lightning.surgery.folding.fold_graph import EXTREMES, Surroundings, describe
from bn_lightning.surgery.folding.fold_layers import (
    affine_of,
    channel_axis,
    following_obstacle,
    layer_obstacle,
    norm_obstacle,
)
from bn_lightning.surgery.folding.fold_plan import Fold
from bn_lightning.surgery.folding.fold_probe import follow_channels
from bn_lightning.surgery.tracing.graph import Node, Trace


class Neighbours:
    """Answers, for the norms of one traced model, where each can go.

    Args:
        model: The model, in evaluation mode.
        trace: Its trace on the example.
        run: Runs it on the example.
    """

    def __init__(self, model: nn.Module, trace: Trace, run: Callable[[], Any]) -> None:
        self._model = model
        self._around = Surroundings(trace)
        self._returned = trace.returned
        self._run = run
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._holders: dict[int, set[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for parameter in module.parameters(recurse=False):
                self._holders.setdefault(id(parameter), set()).add(path)

    def obstacle(self, path: str) -> str:
        """Why a norm goes nowhere at all, or an empty string where it may."""
        reason = norm_obstacle(self._model.get_submodule(path))
        if not reason and path not in self._around.norm_calls:
            reason = "was not called as a module on the example"
        return reason

    def first_call(self, path: str) -> int:
        """When a norm is first called; later than everything for one that is not."""
        calls = self._around.norm_calls.get(path)
        return calls[0].index if calls else len(self._around.nodes)

    def preceding(self, path: str) -> Fold | str:
        """Fold a norm into the layers that feed it, or say why not.

        Args:
            path: A norm without `obstacle`.

        Returns:
            The fold, which later answers take for carried out; or the reason.
        """
        calls = self._around.norm_calls[path]
        between: set[str] = set()
        layers: dict[str, None] = {}
        for call in calls:
            source = self._around.source(call, between)
            if source.role != "affine":
                return f"its input comes from {describe(source)}, not from an affine layer"
            layers[source.layer] = None
        own = {call.index for call in calls}
        for layer in layers:
            reason = self._layer_reason(layer) or self._reader_reason(self._around.layer_calls[layer], own, repr(layer))
            if reason:
                return reason
        reason = self._extremes_reason(path, between)
        if reason:
            return reason
        channels = affine_of(self._model.get_submodule(path)).scale.numel()
        if not between:
            wrong = [
                layer for layer in layers if any(self._axis(call) != 1 for call in self._around.layer_calls[layer])
            ]
            if wrong:
                call = self._around.layer_calls[wrong[0]][0]
                return (
                    f"{wrong[0]!r} writes its channels on axis {self._axis(call)} of {len(call.shape)}, and it scales "
                    "axis 1"
                )
        else:
            sources = {layer: channel_axis(self._model.get_submodule(layer)) for layer in layers}
            found = self._follow(sources, {path: 1}, channels, len(calls))
            if found.get(path) != tuple(range(channels)):
                return _mixing(between, layers)
        self._around.folded.add(path)
        return Fold(path, tuple(layers), "preceding", tuple(sorted(between)))

    def following(self, path: str) -> Fold | str:
        """Fold a norm into the layers that it feeds, or say why not.

        Args:
            path: A norm without `obstacle`.

        Returns:
            The fold, which later answers take for carried out; or the reason.
        """
        calls = self._around.norm_calls[path]
        own = {call.index for call in calls}
        between: set[str] = set()
        layers: dict[str, None] = {}
        for reader in self._around.readers(calls, between):
            if reader is None:
                return "its output is returned by the model"
            if reader.role != "affine":
                return f"its output is read by {describe(reader)}, not by an affine layer"
            layers[reader.layer] = None
        if not layers:
            return "nothing reads its output"
        for layer in layers:
            reason = self._layer_reason(layer) or self._following_reason(layer, own)
            if reason:
                return reason
        reason = self._extremes_reason(path, between)
        if reason:
            return reason
        arrivals = sum(len(self._around.layer_calls[layer]) for layer in layers)
        targets = {layer: channel_axis(self._model.get_submodule(layer)) for layer in layers}
        count = affine_of(self._model.get_submodule(path)).scale.numel()
        if not between and all(axis % len(call.shape) == 1 for axis in targets.values() for call in calls):
            found = dict.fromkeys(layers, tuple(range(count)))
        else:
            found = self._follow({path: 1}, targets, count, arrivals)
        mixed = [layer for layer in layers if layer not in found]
        if mixed:
            if not between:
                return f"{', '.join(map(repr, mixed))} reads channels on another axis than the one it scales"
            return _mixing(between, mixed)
        self._around.folded.add(path)
        maps = tuple(found[layer] for layer in layers)
        return Fold(path, tuple(layers), "following", tuple(sorted(between)), maps)

    def _follow(
        self, sources: dict[str, int], targets: dict[str, int], channels: int, arrivals: int
    ) -> dict[str, tuple[int, ...]]:
        return follow_channels(
            self._model,
            self._run,
            sources,
            targets,
            channels=channels,
            arrivals=arrivals,
            identities=tuple(self._around.folded),
        )

    def _extremes_reason(self, path: str, between: set[str]) -> str:
        extremes = between & EXTREMES
        negative = (affine_of(self._model.get_submodule(path)).scale < 0).nonzero().flatten().tolist()
        if extremes and negative:
            return (
                f"{', '.join(sorted(extremes))} stands between, and its scale is negative in {len(negative)} channels "
                f"(the first is {negative[0]}), where the largest value becomes the smallest"
            )
        return ""

    def _following_reason(self, layer: str, own: set[int]) -> str:
        module = self._model.get_submodule(layer)
        reason = following_obstacle(module)
        if reason:
            return f"{layer!r} {reason}"
        for call in self._around.layer_calls[layer]:
            source = self._around.source(call, set())
            if source.index not in own:
                return f"{layer!r} also receives {describe(source)}"
        return ""

    def _layer_reason(self, layer: str) -> str:
        """Why a layer's weights cannot change, whatever is to be folded into them."""
        calls = self._around.layer_calls[layer]
        if any((layer, call.index) not in self._returned for call in calls):
            return f"the weight of {layer!r} is used in a function, not by a layer of torch alone"
        module = self._model.get_submodule(layer)
        reason = layer_obstacle(module)
        if reason:
            return f"{layer!r} {reason}"
        indices = {call.index for call in calls}
        for parameter in module.parameters():
            allowed = self._holders[id(parameter)]
            for user in self._around.users_of_parameter(self._names[id(parameter)], f"{layer}.parametrizations."):
                if user is None:
                    return f"{layer!r} shares a parameter that the model returns"
                if user.index not in indices and user.owner not in allowed:
                    return f"{layer!r} shares a parameter with {describe(user)}"
        return ""

    def _reader_reason(self, calls: Iterable[Node], own: set[int], name: str) -> str:
        for reader in self._around.readers(calls, set()):
            if reader is None:
                return f"the output of {name} is also returned by the model"
            if reader.index not in own:
                return f"the output of {name} is also read by {describe(reader)}"
        return ""

    def _axis(self, call: Node) -> int:
        return channel_axis(self._model.get_submodule(call.layer)) % len(call.shape)


def _mixing(between: set[str], layers: Iterable[str]) -> str:
    verb = "mixes" if len(between) == 1 else "mix"
    return (
        f"{' and '.join(sorted(between))} between it and {', '.join(map(repr, layers))} {verb} channels, or padding in"
    )
