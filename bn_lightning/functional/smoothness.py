"""Loss range, gradient predictiveness and effective β of a path away from a point, in float64.

A path is n points at distances d₁ … dₙ from θ, all along one direction. What was measured at them comes
as vectors `[n]`; nothing is reduced over a batch here.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Smoothness:
    """What a path says about the loss around its start.

    A point where a value was NaN or infinite makes the numbers that need it NaN: leaving it out would make the
    roughest path look smooth. A point that did not move, its step being below the resolution of the parameters, makes
    β NaN.

    Attributes:
        loss_min: Lowest loss at the points, in the unit of the loss; the start is not among them.
        loss_max: Highest loss at the points.
        predictiveness_min: Smallest ‖g(θ + d) − g(θ)‖₂, in the unit of the gradient; 0 is a gradient that
            predicts the next one perfectly.
        predictiveness_max: Largest of these.
        beta: Effective β-smoothness max ‖g(θ + d) − g(θ)‖₂ / ‖d‖₂, in loss per squared parameter unit.
    """

    loss_min: float
    loss_max: float
    predictiveness_min: float
    predictiveness_max: float
    beta: float

    @property
    def loss_range(self) -> float:
        """`loss_max` − `loss_min`."""
        return self.loss_max - self.loss_min


def path_smoothness(
    distances: Float[Tensor, " n"], losses: Float[Tensor, " n"], gradient_changes: Float[Tensor, " n"]
) -> Smoothness:
    """Summarise a path.

    Source: Santurkar et al. (2018), section 3.1 and figure 4: (a) the variation of the loss, (b) the distance
    of the gradient from that at θ, (c) the largest such distance over the distance moved.

    Args:
        distances: ‖d‖₂ of each point, in the unit of the parameters.
        losses: Loss at each point.
        gradient_changes: ‖g(θ + d) − g(θ)‖₂ at each point.

    Returns:
        The five numbers; NaN where a point they need is not finite.

    Raises:
        ValueError: If there is no point, or a distance is negative.

    Example:
        >>> import torch
        >>> steps = torch.tensor([0.5, 1.0])
        >>> path_smoothness(steps, 3 * steps**2 / 2, 3 * steps).beta  # of 3x²/2, around 0
        3.0
    """
    if not len(distances) or bool((distances < 0).any()):
        raise ValueError(
            f"A path needs points at some distance from its start, got distances {distances.tolist()}; give one or "
            "more step sizes, and norms for distances."
        )
    steps, heights, changes = (_finite_or_nan(part) for part in (distances, losses, gradient_changes))
    slopes = [change / step if step else math.nan for change, step in zip(changes, steps, strict=True)]
    return Smoothness(_least(heights), _largest(heights), _least(changes), _largest(changes), _largest(slopes))


def _finite_or_nan(values: Tensor) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values.detach().cpu().double().tolist()]


def _largest(values: list[float]) -> float:
    # What max and min make of NaN depends on where it stands.
    return math.nan if any(map(math.isnan, values)) else max(values)


def _least(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else min(values)
