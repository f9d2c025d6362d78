"""The loss and its gradient along the gradient: how smooth the way ahead of an optimizer is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.functional.covariate_shift import DEAD
from bn_lightning.functional.norms import euclidean_norm
from bn_lightning.functional.smoothness import Smoothness, path_smoothness
from bn_lightning.probes.loss_smoothness_steps import sign_of, steps_along_gradient
from bn_lightning.probes.objective import LossFn, Objective
from bn_lightning.probes.parameter_vectors import ParameterVectors
from bn_lightning.probes.scale_invariance import Blocks, scale_invariant_blocks

NORMALISED_LENGTHS = (0.01, 0.1)


@dataclass(frozen=True)
class LossSmoothness:
    """What was found along the gradient at one point of training.

    Attributes:
        loss: Loss at θ, the mean over the probe set; NaN if it was not finite.
        gradient_norm: ‖g‖₂ at θ.
        samples: Size of the probe set. β depends on it: compare values of one size, at matched loss.
        step_sizes: η of each point, a multiple of the gradient.
        losses: Loss at each point, NaN where it was not finite.
        path: Loss range, gradient predictiveness and effective β of these points.
        beta_normalised: Effective β in normalised coordinates, which rescaling weights before a norm leaves
            alone; in loss, over the squared length of the normalised step. None where it was not asked for.
        evaluations: Forward and backward passes over the probe set that this took.
        state: "dead" where the gradient is exactly 0: there is no direction to step along, and all other numbers but
            the loss are NaN. Otherwise empty.
    """

    loss: float
    gradient_norm: float
    samples: int
    step_sizes: tuple[float, ...]
    losses: tuple[float, ...]
    path: Smoothness
    beta_normalised: float | None
    evaluations: int
    state: str = ""

    def numbers(self) -> dict[str, float]:
        """All numbers by the name under which they are logged.

        Returns:
            `smoothness_loss`, `smoothness_gradient_norm`, `loss_range_min`, `loss_range_max`,
            `gradient_predictiveness_min`, `gradient_predictiveness_max`, `effective_beta`, and
            `effective_beta_normalised` if it was asked for.
        """
        numbers = {
            "smoothness_loss": self.loss,
            "smoothness_gradient_norm": self.gradient_norm,
            "loss_range_min": self.path.loss_min,
            "loss_range_max": self.path.loss_max,
            "gradient_predictiveness_min": self.path.predictiveness_min,
            "gradient_predictiveness_max": self.path.predictiveness_max,
            "effective_beta": self.path.beta,
        }
        return (
            numbers if self.beta_normalised is None else numbers | {"effective_beta_normalised": self.beta_normalised}
        )


def loss_smoothness(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    loss_fn: LossFn | None = None,
    step_sizes: Sequence[float] | None = None,
    multiples: Sequence[float] = (0.5, 1, 2, 4),
    learning_rate: float | None = None,
    max_step_size: float | None = None,
    direction: Literal["descent", "ascent"] = "descent",
    parameters: str | Sequence[str] | None = None,
    normalised: bool | Blocks = True,
    normalised_lengths: Sequence[float] = NORMALISED_LENGTHS,
) -> LossSmoothness:
    """Step along the gradient and see how loss and gradient change.

    Source: Santurkar et al. (2018), section 3.1 and figure 4: at θ, with g = ∇L(θ), over step sizes η, the range
    of L(θ ∓ ηg), the range of ‖∇L(θ ∓ ηg) − g‖₂ and the largest of these over the distance η‖g‖₂. The paper
    takes η in [1/2, 4] × the learning rate, at most 0.4, and for its deep linear network [1/100, 30] ×. It writes
    θ + ηg; the step an optimizer would take is θ − ηg, the default here.

    Raw β is not scale-invariant: multiplying the weights before a norm by 10 leaves the loss as it is and divides
    their share of β by 100. In *normalised coordinates* each scale-invariant block w_b is divided by its norm at θ,
    u_b = w_b/‖w_b‖₂, all else is left alone. There the gradient is ‖w_b‖·g_b, a step of it moves w_b by ‖w_b‖²·g_b,
    and no rescaling of a block changes anything but by way of the norm's epsilon. Points lie at given lengths
    ‖Δu‖₂ along that gradient.

    Cost: 1 + n forward and backward passes over the probe set for n step sizes, one more for each of
    `normalised_lengths`. Nothing on the model changes (see `Objective`).

    Args:
        model: The module, in the modes it is to be measured in: training mode, so that norms act as the optimizer
            meets them.
        batches: The probe set, a list of batches; a large fixed one, for with a few samples β changes its order.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        step_sizes: η in absolute terms. Without them `multiples` of `learning_rate` are taken.
        multiples: Of the learning rate.
        learning_rate: The optimizer's.
        max_step_size: Larger steps are taken at this size.
        direction: "descent" for θ − ηg, "ascent" for θ + ηg.
        parameters: fnmatch patterns on the paths of the parameters to move; by default all that are trained.
        normalised: Whether to measure β in normalised coordinates too, with blocks found by
            `scale_invariant_blocks` (its cost comes on top), or the blocks themselves.
        normalised_lengths: ‖Δu‖₂ of the points there.

    Returns:
        The numbers, and the losses point by point.

    Raises:
        ValueError: If no step size is known or one is not positive, or the direction is unknown; see `Objective` for
            unusable batches and losses.
        UnknownNameError: If a block or pattern names no trainable parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False).double()
        >>> x = torch.ones(2, 1).double()
        >>> def loss_fn(model, x):
        ...     return 3 / 2 * model(x).square().mean()
        >>> found = loss_smoothness(model, [x], loss_fn=loss_fn, learning_rate=0.1, normalised=False)
        >>> round(found.path.beta, 6), found.step_sizes
        (3.0, (0.05, 0.1, 0.2, 0.4))
    """
    sizes = steps_along_gradient(
        step_sizes=step_sizes, multiples=multiples, learning_rate=learning_rate, max_step_size=max_step_size
    )
    sign = sign_of(direction)
    objective = Objective(model, batches, loss_fn=loss_fn, parameters=parameters)
    if normalised is True:
        normalised = scale_invariant_blocks(model, batches, loss_fn=loss_fn, parameters=parameters)
    with objective.guarded(), torch.no_grad():
        loss, found = objective()
        gradient = ParameterVectors(found)
        gradient.fill(found.values())
        # Let go of the memory before the walk needs as much again.
        found.clear()
        norm = euclidean_norm(gradient.vectors)
        if norm == 0:
            return _dead(objective, loss, sizes, normalised is not False)
        losses, path = _walk(objective, gradient, norm, [sign * size for size in sizes])
        beta = None
        if normalised is not False:
            scale = _block_norms(objective, normalised)
            length = euclidean_norm(_times(gradient.vectors, scale))
            _, curved = _walk(objective, gradient, length, [sign * part / length for part in normalised_lengths], scale)
            beta = curved.beta
    return LossSmoothness(_finite(loss), norm, objective.samples, sizes, losses, path, beta, objective.evaluations)


def _walk(
    objective: Objective,
    gradient: ParameterVectors,
    length: float,
    etas: Sequence[float],
    scale: ParameterVectors | None = None,
) -> tuple[tuple[float, ...], Smoothness]:
    """Losses and smoothness at u + η·∂L/∂u, where u = θ/scale and ‖∂L/∂u‖₂ the length; unscaled that is θ + ηg."""
    point = ParameterVectors(objective.parameters)
    point.fill(objective.parameters.values())
    start, there = point.copies(), gradient.like()
    # Above this length, a step is rounded by 1e-3 of itself at the very worst, and by far less as a rule.
    resolved = 5e2 * max(torch.finfo(part.dtype).eps for part in start) * euclidean_norm(_over(start, scale))
    ahead = gradient.vectors if scale is None else _times(_times(gradient.vectors, scale), scale)
    distances, losses, changes = [], [], []
    with objective.standing_at(point.views):
        for eta in etas:
            _combine(torch.add, start, ahead, point.vectors, alpha=eta)
            loss, found = objective()
            losses.append(loss)
            there.fill(found.values())
            _combine(torch.sub, there.vectors, gradient.vectors, there.vectors)
            changes.append(euclidean_norm(_times(there.vectors, scale)))
            distance = abs(eta) * length
            if not distance > resolved:
                # Near the resolution of the parameters rounding leaves of the step not what was asked for.
                _combine(torch.sub, point.vectors, start, there.vectors)
                distance = euclidean_norm(_over(there.vectors, scale))
            distances.append(distance)
    as_vector = [torch.tensor(values, dtype=torch.float64) for values in (distances, losses, changes)]
    path = path_smoothness(*as_vector)
    return tuple(_finite(loss) for loss in losses), path


def _combine(
    operation: Callable[..., Tensor], first: list[Tensor], second: list[Tensor], out: list[Tensor], **options: float
) -> None:
    for here, other, result in zip(first, second, out, strict=True):
        operation(here, other, out=result, **options)


def _times(values: list[Tensor], scale: ParameterVectors | None) -> list[Tensor]:
    return values if scale is None else list(map(torch.mul, values, scale.vectors))


def _over(values: list[Tensor], scale: ParameterVectors | None) -> list[Tensor]:
    return values if scale is None else list(map(torch.div, values, scale.vectors))


def _finite(loss: Tensor) -> float:
    return float(loss) if bool(loss.isfinite()) else math.nan


def _dead(objective: Objective, loss: Tensor, sizes: tuple[float, ...], normalised: bool) -> LossSmoothness:
    nan = math.nan
    return LossSmoothness(
        loss=_finite(loss),
        gradient_norm=nan,
        samples=objective.samples,
        step_sizes=sizes,
        losses=(nan,) * len(sizes),
        path=Smoothness(nan, nan, nan, nan, nan),
        beta_normalised=nan if normalised else None,
        evaluations=objective.evaluations,
        state=DEAD,
    )


def _block_norms(objective: Objective, blocks: Blocks) -> ParameterVectors:
    sizes = dict.fromkeys(objective.parameters, 1.0)
    for block in blocks:
        if unknown := sorted(set(block) - set(sizes)):
            raise UnknownNameError(
                f"The block {list(block)} names {', '.join(map(repr, unknown))}, which is no trainable parameter of "
                f"{type(objective.model).__name__}; there are, for instance: {', '.join(list(sizes)[:10])}."
            )
        size = euclidean_norm(objective.parameters[name] for name in block)
        sizes.update(dict.fromkeys(block, size or 1.0))
    scale = ParameterVectors(objective.parameters)
    for vector in scale.vectors:
        # The elements between parameters are divided by it too.
        vector.fill_(1.0)
    for name, size in sizes.items():
        scale.views[name].fill_(size)
    return scale
