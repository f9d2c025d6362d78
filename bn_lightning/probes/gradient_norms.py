"""How long the gradient is at each depth of a network: whether it vanishes or explodes on its way down.

A layer's output may have any shape; a sample is a row of axis 0 of the batch, and all else of the output counts as one
long vector.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bn_lightning.probes.layer_order import choose_layers, layers_in_order, noted_calls, owner_of
from bn_lightning.probes.objective import LossFn, Objective
from bn_lightning.probes.parameter_gradients import parameter_gradients
from bn_lightning.surgery.sandbox import preserve_random_state


@dataclass(frozen=True)
class LayerGradient:
    """The gradient at one layer.

    Attributes:
        layer: Path of the module whose own parameters these are.
        parameters: ‖∂L/∂θ‖₂ over all its trained parameters, in loss per parameter unit.
        relative: The same over ‖θ‖₂; NaN where all its parameters are 0.
        output: √(N Σ_n ‖∂L/∂a_n‖²) with a_n its output for sample n of N, in loss per unit of the output: the
            root mean square, over samples, of the gradient of the sample's own loss where L is their mean. It
            does not grow with N. Of several calls in a forward all count; of several tensors that a call returns, as a
            recurrent layer does, the first that the loss depends on. NaN for a module that is never called itself.
    """

    layer: str
    parameters: float
    relative: float
    output: float

    def numbers(self) -> dict[str, float]:
        """All numbers by the name under which they are logged.

        Returns:
            `gradient_norm`, `gradient_norm_relative`, `gradient_norm_output`.
        """
        return {
            "gradient_norm": self.parameters,
            "gradient_norm_relative": self.relative,
            "gradient_norm_output": self.output,
        }


@dataclass(frozen=True)
class GradientNorms:
    """Gradients layer by layer.

    Attributes:
        loss: Mean loss over the probe set; NaN if it was not finite.
        layers: One entry a layer, in the order in which they are first called.
        samples: Size of the probe set.
    """

    loss: float
    layers: tuple[LayerGradient, ...]
    samples: int

    def decades_per_layer(self) -> float:
        """The slope of log₁₀ of the outputs' gradient norm over depth, a least-squares line.

        Returns:
            Above 0 where gradients shrink towards the input (they vanish), below 0 where they grow (they explode): by
            a factor of 10 to this power at each layer. −∞ never comes up: NaN where a norm is 0 or not finite, or
            there are fewer than two layers.
        """
        norms = [layer.output for layer in self.layers]
        if len(norms) < 2 or not all(0 < norm < math.inf for norm in norms):
            return math.nan
        logs, middle = [math.log10(norm) for norm in norms], (len(norms) - 1) / 2
        rise = sum((depth - middle) * log for depth, log in enumerate(logs))
        return rise / sum((depth - middle) ** 2 for depth in range(len(norms)))

    def numbers(self) -> dict[str, dict[str, float]]:
        """All numbers by layer and name; the layer "" is the whole model.

        Returns:
            Those of `LayerGradient.numbers`, and `gradient_norm_decades_per_layer` of the model.
        """
        whole = {"gradient_norm_decades_per_layer": self.decades_per_layer()}
        return {layer.layer: layer.numbers() for layer in self.layers} | {"": whole}


def gradient_norms(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    loss_fn: LossFn | None = None,
    layers: str | Sequence[str] | None = None,
    parameters: str | Sequence[str] | None = None,
) -> GradientNorms:
    """The norm of the loss's gradient by the parameters and by the output of each layer.

    Source: Ioffe & Szegedy (2015), section 1 and 3.3, hold that batch norm keeps gradients from vanishing and
    exploding; Glorot & Bengio (2010), "Understanding the difficulty of training deep feedforward neural networks",
    section 4.2.2, plot gradients by depth. A norm that insertion hung on a layer belongs to the layer's output.

    Cost: a forward and a backward of the probe set. Nothing on the model changes (see `Objective`).

    Args:
        model: The module, in the modes it is to be measured in.
        batches: The probe set, a list of batches.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        layers: fnmatch patterns on the layers' paths; by default those with a parameter of two or more axes, so not
            norms.
        parameters: fnmatch patterns on the parameters' paths, where several optimizers share the model.

    Returns:
        One entry a layer, in the order of the forward. Values that are not finite are NaN.

    Raises:
        UnknownNameError: If a pattern matches nothing.
        ValueError: If no layer has a parameter of two or more axes and none is named; see `Objective` for unusable
            batches and losses.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer in model:
        ...     _ = nn.init.constant_(layer.weight, 0.1)
        >>> found = gradient_norms(model, [torch.ones(4, 1)], loss_fn=lambda model, x: model(x).mean())
        >>> [round(layer.output, 6) for layer in found.layers], round(found.decades_per_layer(), 6)
        ([0.1, 1.0], 1.0)
    """
    objective = Objective(model, batches, loss_fn=loss_fn, parameters=parameters)
    modules = dict(objective.model.named_modules())
    names = list(objective.parameters)
    squares: dict[str, dict[int, float]] = {}
    gradient: dict[str, Tensor] = {}
    total = 0.0
    owners = {name: modules[name] for name in map(owner_of, names)}
    with (
        objective.guarded(),
        preserve_random_state(),
        noted_calls(objective.model) as order,
        _watched(owners, squares) as weigh,
    ):
        for share, loss, leaves in objective.losses(None, names):
            # Each sample's own gradient is N ∂L/∂a; its mean square over N samples takes one N away again.
            weigh(share**2 * objective.samples)
            parts = parameter_gradients(loss, list(leaves.values()), objective.model)
            total += share * float(loss.detach())
            for name, part in zip(names, parts, strict=True):
                weighted = share * part.detach().double()
                gradient[name] = gradient[name] + weighted if name in gradient else weighted
    owned = layers_in_order(objective.parameters, order)
    found = []
    for layer in choose_layers(owned, objective.parameters, layers):
        size = _norm(objective.parameters[name] for name in owned[layer])
        norm = _norm(gradient[name] for name in owned[layer])
        relative = norm / size if size else math.nan
        met = squares.get(layer)
        output = math.nan if met is None else math.sqrt(met[min(met)]) if met else 0.0
        found.append(LayerGradient(layer, norm, relative, output if math.isfinite(output) else math.nan))
    return GradientNorms(total if math.isfinite(total) else math.nan, tuple(found), objective.samples)


@contextmanager
def _watched(
    modules: Mapping[str, nn.Module], squares: dict[str, dict[int, float]]
) -> Iterator[Callable[[float], None]]:
    """Sum the squares of the gradients by each module's outputs, with a weight that the caller sets for each batch."""
    weight = 1.0

    def weigh(value: float) -> None:
        nonlocal weight
        weight = value

    def watch(name: str) -> Callable[..., None]:
        def add(gradient: Tensor | None, place: int) -> None:
            # Outputs that one operation made are all called for, with None for those that the loss leaves out.
            if gradient is not None:
                norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
                squares[name][place] = squares[name].get(place, 0.0) + weight * norm**2

        def returned(module: nn.Module, args: Any, output: Any) -> None:
            for place, part in enumerate(tree_leaves(output)):
                if isinstance(part, Tensor) and part.requires_grad:
                    squares.setdefault(name, {})
                    # A hook on the tensor is not moved by an in-place activation behind the layer, as the tensor is.
                    part.register_hook(functools.partial(add, place=place))

        return returned

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        yield weigh
    finally:
        for handle in handles:
            handle.remove()


def _norm(parts: Iterable[Tensor]) -> float:
    norm = math.hypot(*(float(torch.linalg.vector_norm(part.detach(), dtype=torch.float64)) for part in parts))
    return norm if math.isfinite(norm) else math.nan
