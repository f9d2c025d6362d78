"""Internal covariate shift of a real optimizer step: the gradient of each layer before and after the others moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.covariate_shift import GradientShift, gradient_shift
from bn_lightning.functional.norms import euclidean_norms
from bn_lightning.probes.layer_order import choose_layers, layers_in_order, noted_calls
from bn_lightning.probes.objective import LossFn, Objective


@dataclass(frozen=True)
class LayerShift:
    """Covariate shift of one layer in one step.

    Attributes:
        layer: Path of the module whose own parameters these are.
        shift: The distance of its gradients.
        noise: The distance between its gradients on this batch and on another, at the same parameters: what the
            choice of the batch alone does. None without `reference`.
    """

    layer: str
    shift: GradientShift
    noise: GradientShift | None = None

    def numbers(self) -> dict[str, float]:
        """All numbers by the name under which they are logged.

        Returns:
            `gradient_shift`, `gradient_shift_relative`, `gradient_shift_per_unit_step`, `gradient_shift_cosine`,
            `gradient_shift_dead` (1 for a layer without a gradient, whose other numbers are NaN; else 0), and
            `gradient_noise_relative` and `gradient_noise_cosine` where there is a reference.
        """
        numbers = {
            "gradient_shift": self.shift.distance,
            "gradient_shift_relative": self.shift.relative,
            "gradient_shift_per_unit_step": self.shift.per_unit_step,
            "gradient_shift_cosine": self.shift.cosine,
            "gradient_shift_dead": float(self.shift.state == "dead"),
        }
        if self.noise is not None:
            numbers["gradient_noise_relative"] = self.noise.relative
            numbers["gradient_noise_cosine"] = self.noise.cosine
        return numbers


def gradient_covariate_shift(
    model: nn.Module,
    batches: Sequence[Any],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor] | None = None,
    *,
    loss_fn: LossFn | None = None,
    layers: str | Sequence[str] | None = None,
    parameters: str | Sequence[str] | None = None,
    reference: Sequence[Any] | None = None,
) -> tuple[LayerShift, ...]:
    """How much each layer's gradient changes because the layers before it took their step.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", Definition 2.1. For layer i,
    G is the gradient by its parameters with all parameters as before the step, and G' the one with the layers before i
    as after the step, i and the layers behind it still as before; the shift is ‖G − G'‖₂. Both are taken on the
    same batches, with the same dropout masks, in the modes the model is in (norms in training mode).
    Consecutive *different* batches would measure batch noise, which is several times larger: `reference` gives it.

    A layer is a module with trainable parameters of its own, those that a parametrization computes its weight from
    among them, in the order in which the modules are first called; a module that is never called itself (its
    parameters are read by others) keeps its place in the order of registration.
    The first layer is not measured: nothing comes before it, its shift is 0 by definition.

    Cost: a forward and backward for G, and for each layer measured a forward and a backward down to that layer; one
    more with `reference`. Nothing on the model changes (see `Objective`).

    Args:
        model: The module; whichever parameters it holds, the two sets given count. It is run in its modes.
        batches: A list with the batches of the step.
        before: Parameters θ_t by path, as `Objective.snapshot` copies them or `named_parameters` names them.
        after: θ_{t+1}; by default the parameters the model holds now. Those missing on either side did not move.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        layers: fnmatch patterns on the layers' paths; by default those with a parameter of two or more axes, so
            not norms (which move with the layers before all the same).
        parameters: fnmatch patterns on the parameters' paths, where several optimizers share the model: only
            these count as layers and move.
        reference: Other batches, at which the noise is taken.

    Returns:
        One entry a measured layer, in the order of the forward.

    Raises:
        UnknownNameError: If a pattern matches nothing, or `before` or `after` has a name the model lacks.
        ValueError: If there is no layer to measure; see `Objective` for unusable batches and losses.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = (torch.randn(16, 4), torch.randn(16, 1))
        >>> def loss_fn(model, batch):
        ...     return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> before = {name: value.detach().clone() for name, value in model.named_parameters()}
        >>> loss_fn(model, batch).backward()
        >>> optimizer.step()
        >>> (second,) = gradient_covariate_shift(model, [batch], before, loss_fn=loss_fn)
        >>> second.layer, 0 < second.shift.relative < 1, 0 < second.shift.cosine < 1
        ('2', True, True)
    """
    # Training took the step on these batches, if with a single sample.
    objective = Objective(model, batches, loss_fn=loss_fn, parameters=parameters, min_samples=1)
    start, end = (_complete(objective, point) for point in (before, objective.parameters if after is None else after))
    with objective.guarded(), torch.no_grad():
        with noted_calls(objective.model) as order:
            _, gradient = objective(start)
        owned = layers_in_order(objective.parameters, order)
        chosen = _measured(owned, layers, objective)
        other = None
        if reference is not None:
            of_reference = Objective(model, reference, loss_fn=loss_fn, parameters=parameters, min_samples=1)
            other = of_reference(start)[1]
        moves = dict(
            zip(
                start,
                euclidean_norms(torch._foreach_sub([end[name] for name in start], list(start.values()))),
                strict=True,
            )
        )
        found = []
        point, squared_step = dict(start), 0.0
        for layer, names in list(owned.items())[: list(owned).index(chosen[-1]) + 1]:
            if layer in chosen:
                # At a step of exactly 0 the second pass would repeat the first.
                moved = objective(point, names)[1] if squared_step != 0 else gradient
                g = [gradient[name] for name in names]
                shift = gradient_shift(g, [moved[name] for name in names], step=squared_step**0.5)
                noise = None if other is None else gradient_shift(g, [other[name] for name in names])
                found.append(LayerShift(layer, shift, noise))
            for name in names:
                point[name] = end[name]
            squared_step += sum(moves[name] ** 2 for name in names)
    return tuple(found)


def _complete(objective: Objective, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    known = dict(objective.model.named_parameters(remove_duplicate=False))
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UnknownNameError(
            f"{type(objective.model).__name__} has no parameter {', '.join(map(repr, unknown[:5]))}; name them as "
            "named_parameters() does, and take both sets after the norms were inserted."
        )
    return {name: given.get(name, value).detach() for name, value in objective.parameters.items()}


def _measured(owned: Mapping[str, list[str]], layers: str | Sequence[str] | None, objective: Objective) -> list[str]:
    first = next(iter(owned))
    chosen = [layer for layer in choose_layers(owned, objective.parameters, layers) if layer != first]
    if not chosen:
        raise ValueError(
            f"There is no layer to measure in {type(objective.model).__name__}: the first of the layers with trainable "
            f"parameters ({', '.join(map(repr, owned))}) has none before it, so its shift is 0 by definition. Choose "
            "others with layers=."
        )
    return chosen
