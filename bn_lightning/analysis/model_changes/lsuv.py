"""Layer-sequential unit variance: scale each layer's weights until its output has variance 1."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def scale_to_unit_variance(
    layers: Mapping[str, nn.Module], run: Callable[[], object], *, tolerance: float = 0.1, tries: int = 10
) -> dict[str, float]:
    r"""Divide each layer's weight by the standard deviation of its output, from the first layer to the last.

    Algorithm 1 of the paper without its first line: for each layer, in the order in which the forward calls them,
    $W \leftarrow W / \sqrt{\operatorname{Var} B}$ with the biased variance over all values of its output $B$, until
    $|\operatorname{Var} B - 1|$ is below the tolerance or the tries are used up. Biases should be 0. A layer called
    several times a run is judged by all its outputs; one that is not called stays as it is.

    Source: Mishkin & Matas 2016, "All you need is a good init", algorithm 1.

    Args:
        layers: Layers with a `weight`, by name; scaled in place.
        run: Runs the model on a batch, the same one in every call.
        tolerance: How far the variance may be from 1.
        tries: Scalings of a layer, at most.

    Returns:
        The variance of each layer's output as it was left, in the order of the forward; where the tries were used up,
        as it was before the last of them.

    Raises:
        ValueError: If the output of a layer is the same everywhere, or not finite.

    Example:
        >>> layer, inputs = nn.Linear(20, 30), torch.randn(50, 20)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> _ = scale_to_unit_variance({"layer": layer}, lambda: layer(inputs))
        >>> abs(layer(inputs).var().item() - 1) < 0.1
        True
    """
    found: dict[str, float] = {}
    for name in _order(layers, run):
        for _ in range(tries):
            found[name] = variance = _output_variance(layers[name], run)
            if abs(variance - 1) < tolerance:
                break
            if not 0 < variance < float("inf"):
                raise ValueError(
                    f"LSUV scales {name!r} by the standard deviation of its output, whose variance on the first "
                    f"training batch is {variance}. Take another initialisation, or see what the layer receives."
                )
            with torch.no_grad():
                weight: Any = layers[name].weight
                weight.div_(variance**0.5)
    return found


def _order(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> list[str]:
    called: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.setdefault(name)

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


def _output_variance(layer: nn.Module, run: Callable[[], object]) -> float:
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.append(output.detach().double().flatten())

    handle = layer.register_forward_hook(keep)
    try:
        run()
    finally:
        handle.remove()
    return float(torch.cat(outputs).var(correction=0))
