"""The loss along one or over two directions in the space of the parameters, and where it is flat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.norms import euclidean_norm
from bn_lightning.functional.plateaus import plateau_share
from bn_lightning.probes.curvature_directions import Direction
from bn_lightning.probes.curvature_hessian import NormMode, norms_in
from bn_lightning.probes.objective import LossFn, Objective
from bn_lightning.probes.parameter_vectors import ParameterVectors


@dataclass(frozen=True)
class Surface:
    """The loss on a line or a rectangular grid around an origin.

    Attributes:
        coordinates: The multiples of each direction, one tuple a direction.
        losses: Mean loss over the probe set, float64, ``[len(first)]`` or ``[len(first), len(second)]``; NaN where
            it was not finite.
        gradient_norms: ‖g‖₂ by all trained parameters at each point, of the same shape; None if not asked for.
        samples: Size of the probe set.
    """

    coordinates: tuple[tuple[float, ...], ...]
    losses: Tensor
    gradient_norms: Tensor | None
    samples: int

    def plateau_share(self, fraction: float, reference: float | None = None) -> float:
        """The share of points whose gradient norm is below `fraction` of the largest on this surface, or of another.

        See `bn_lightning.functional.plateaus.plateau_share` for the scales and their blind spots.

        Args:
            fraction: Between 0 and 1.
            reference: A gradient norm to compare with in place of the largest, such as that at the initial weights:
                surfaces of several networks or stages are then measured by one scale.

        Returns:
            The share, from 0 to 1; NaN where the surface has no finite gradient, or none but 0 to take the scale from.

        Raises:
            ValueError: If the surface was computed without gradients, or fraction or reference is out of range.
        """
        if self.gradient_norms is None:
            raise ValueError("A plateau is where the gradient is small; compute the surface with gradients=True.")
        return plateau_share(self.gradient_norms, fraction, reference)


def loss_surface(
    model: nn.Module,
    batches: Sequence[Any],
    directions: Sequence[Direction],
    coordinates: Sequence[Sequence[float]],
    *,
    loss_fn: LossFn | None = None,
    origin: Mapping[str, Tensor] | None = None,
    gradients: bool = False,
    norm_mode: NormMode | None = None,
) -> Surface:
    """The loss at θ + a·d₁ (+ b·d₂) for all coordinates given.

    Cost: a forward of the probe set a point, and a backward with `gradients`. Nothing on the model changes.

    Args:
        model: The module.
        batches: The probe set, a list of batches.
        directions: One for a line, two for a surface.
        coordinates: The multiples of each direction.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        origin: θ by path; by default the parameters the model holds.
        gradients: Whether to compute the gradient's norm at each point, as `Surface.plateau_share` needs it.
        norm_mode: "train" or "eval" for batch and instance norms; None leaves them in their modes.

    Returns:
        Losses, and gradient norms if asked for.

    Raises:
        ValueError: If there are not one or two directions with coordinates each, the mode is unknown, or
            `gradients` are asked for where a trained parameter is complex.
        UnknownNameError: If a direction or the origin names what is no trainable parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> direction = {"weight": torch.ones(1, 1)}
        >>> line = loss_surface(
        ...     model, [torch.ones(2, 1)], [direction], [(0, 1, 2)], loss_fn=lambda model, x: model(x).square().mean(),
        ...     origin={"weight": torch.zeros(1, 1)},
        ... )
        >>> line.losses.tolist()
        [0.0, 1.0, 4.0]
    """
    if len(directions) not in (1, 2) or len(coordinates) != len(directions) or not all(map(len, coordinates)):
        raise ValueError(
            f"A surface has one or two directions with coordinates for each, got {len(directions)} directions and "
            f"coordinates of lengths {[len(part) for part in coordinates]}."
        )
    objective = Objective(model, batches, loss_fn=loss_fn, allow_complex=not gradients)
    for given in (*directions, origin or {}):
        if unknown := sorted(set(given) - set(objective.parameters)):
            raise UnknownNameError(
                f"{type(objective.model).__name__} has no trainable parameter {', '.join(map(repr, unknown[:5]))}; "
                "make directions for the model as it is now."
            )
    with objective.guarded(), norms_in(objective.model, norm_mode), torch.no_grad():
        losses, norms = _on_points(objective, origin or {}, directions, coordinates, gradients)
    shape = [len(part) for part in coordinates]
    return Surface(
        tuple(tuple(float(value) for value in part) for part in coordinates),
        _on_grid(losses, shape),
        _on_grid(norms, shape) if gradients else None,
        objective.samples,
    )


def _on_points(
    objective: Objective,
    origin: Mapping[str, Tensor],
    directions: Sequence[Direction],
    coordinates: Sequence[Sequence[float]],
    gradients: bool,
) -> tuple[list[float], list[float]]:
    start = ParameterVectors(objective.parameters)
    start.fill({**objective.parameters, **origin}.values())
    ways = [start.like() for _ in directions]
    for way, direction in zip(ways, directions, strict=True):
        for name, part in direction.items():
            way.views[name].copy_(part)
    line, point = start.like(), start.like()
    losses, norms = [], []
    with objective.standing_at(point.views):
        for first in coordinates[0]:
            _add(start, first, ways[0], line)
            for second in coordinates[1] if len(coordinates) > 1 else (0.0,):
                _add(line, second, ways[-1], point)
                if gradients:
                    loss, gradient = objective()
                    losses.append(float(loss))
                    norms.append(euclidean_norm(gradient.values()))
                else:
                    losses.append(objective.loss())
    return losses, norms


def _add(here: ParameterVectors, multiple: float, way: ParameterVectors, there: ParameterVectors) -> None:
    for start, step, result in zip(here.vectors, way.vectors, there.vectors, strict=True):
        # 0 times an infinite step would be NaN.
        torch.add(start, step, alpha=multiple, out=result) if multiple else result.copy_(start)


def _on_grid(values: list[float], shape: list[int]) -> Tensor:
    grid = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return torch.where(grid.isfinite(), grid, torch.nan)
