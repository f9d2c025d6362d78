"""How far gradients and activations moved between two states of a network, in float64.

Gradients of a layer are sequences of tensors, one a parameter; they count as one long vector. Activations
are `[N, C]`: N values of each of C units. Bring `[N, C, L]` and `[N, C, H, W]` to `[N·L, C]` and `[N·H·W, C]`
before: the batch and space axes are reduced alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bn_lightning.functional.norms import euclidean_norms

DEAD = "dead"
DIED = "died"
NON_FINITE = "non-finite"


@dataclass(frozen=True)
class GradientShift:
    """The distance of two gradients of one layer.

    Attributes:
        distance: ‖G − G'‖₂, in the unit of the gradient.
        relative: ‖G − G'‖₂ / ‖G‖₂.
        per_unit_step: `relative` over the length of the step that the layers before took, in 1/parameter unit.
            To first order it does not depend on the learning rate. NaN for a step of length 0.
        cosine: The cosine of the angle between G and G'; 1 is no shift in direction.
        state: Empty, or why numbers are NaN: "dead" where G is exactly 0 (all are NaN), "died" where only G' is
            (the cosine is), "non-finite" where a gradient holds NaN or infinity (all are).
    """

    distance: float
    relative: float
    per_unit_step: float
    cosine: float
    state: str = ""


def gradient_shift(
    before: Sequence[Float[Tensor, "..."]], after: Sequence[Float[Tensor, "..."]], *, step: float | int = math.nan
) -> GradientShift:
    """Compare a layer's gradient before and after the layers below it were updated.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", Definition 2.1: the
    internal covariate shift of a layer is ‖G − G'‖₂. The cosine is theirs too (figure 2); that a layer without a
    gradient is no sign of stability is not, hence `state`.

    The cosine of near gradients is computed as 1 − (‖G − G'‖² − (‖G‖ − ‖G'‖)²)/(2‖G‖‖G'‖), which keeps its digits
    near 1 and is exactly 1 for equal gradients. Gradients may be as small or large as float64 holds.

    Args:
        before: G, the gradients of the layer's parameters.
        after: G', the gradients of the same parameters.
        step: Length of the step, ‖Δθ‖₂ over the layers before; without it `per_unit_step` is NaN.

    Returns:
        The four numbers.

    Raises:
        ValueError: If the two differ in number or shape, or there are none.

    Example:
        >>> gradient_shift([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 3.0])], step=0.5).per_unit_step
        0.4
        >>> gradient_shift([torch.zeros(2)], [torch.zeros(2)])
        GradientShift(distance=nan, relative=nan, per_unit_step=nan, cosine=nan, state='dead')
    """
    shapes, others = ([tuple(part.shape) for part in parts] for parts in (before, after))
    if not shapes or shapes != others:
        raise ValueError(
            "Two gradients of one layer have equal shapes, a tensor for each parameter; got "
            f"{shapes} before and {others} after. Take both from the same parameters."
        )
    g, h = (_as_vector(parts) for parts in (before, after))
    norm, other, distance = euclidean_norms([g, h, g - h])
    if not (math.isfinite(norm) and math.isfinite(other)):
        return GradientShift(math.nan, math.nan, math.nan, math.nan, NON_FINITE)
    if norm == 0:
        return GradientShift(math.nan, math.nan, math.nan, math.nan, DEAD)
    relative = distance / norm
    per_unit_step = relative / step if step > 0 else math.nan
    if other == 0:
        return GradientShift(distance, relative, per_unit_step, math.nan, DIED)
    if distance < norm / 2:
        # Each factor is divided on its own: products of tiny norms are 0.
        cosine = 1 - (distance - (norm - other)) / norm * ((distance + (norm - other)) / other) / 2
    else:
        cosine = float((g / norm) @ (h / other))
    return GradientShift(distance, relative, per_unit_step, cosine)


def _as_vector(parts: Sequence[Tensor]) -> Tensor:
    # Norms of float32 gradients above 1e19 would overflow where they are squared, and diverging runs have these.
    return torch.cat([part.detach().cpu().double().flatten() for part in parts])


@dataclass(frozen=True)
class ActivationShift:
    """How far the distribution of each unit moved; all float64 `[C]`.

    Attributes:
        wasserstein: Wasserstein-1 distance, in the unit of the activation.
        wasserstein_normalised: The same over the pooled standard deviation √((σ²_before + σ²_after)/2). NaN for
            a unit that was constant both times: it is dead, and its distance of 0 no sign of stability.
        mean_delta: |μ_after − μ_before|, in the unit of the activation.
        variance_delta: |σ²_after − σ²_before|, biased variances, in the squared unit.
        gaussian_kl: KL(N_after ‖ N_before) in nats of normal distributions with these moments. Secondary: it
            explodes as a variance goes to 0, and is NaN where one is 0.
    """

    wasserstein: Float[Tensor, " c"]
    wasserstein_normalised: Float[Tensor, " c"]
    mean_delta: Float[Tensor, " c"]
    variance_delta: Float[Tensor, " c"]
    gaussian_kl: Float[Tensor, " c"]

    def numbers(self) -> dict[str, float]:
        """The means over units, and the number of units that were constant both times, by name.

        Returns:
            `wasserstein`, …, `gaussian_kl` and `dead_units`. Dead units are left out of the mean of
            `wasserstein_normalised` and `gaussian_kl`, so it is NaN where all are dead; the other means hold all.
        """
        live = self.wasserstein_normalised.isnan().logical_and(self.wasserstein.isfinite()).logical_not()
        whole = ("wasserstein", "mean_delta", "variance_delta")
        numbers = {name: float(getattr(self, name).mean()) for name in whole}
        numbers["wasserstein_normalised"] = float(self.wasserstein_normalised[live].mean())
        numbers["gaussian_kl"] = float(self.gaussian_kl[live].mean())
        return numbers | {"dead_units": float((~live).sum())}


def activation_shift(before: Float[Tensor, "n c"], after: Float[Tensor, "m d"]) -> ActivationShift:
    """Compare what C units put out for the same N samples at two times.

    The Wasserstein-1 distance of two samples of equal size is the mean distance of their order statistics.
    Moment deltas follow Santurkar et al. (2018), figure 8.

    Args:
        before: Activations `[N, C]` of a fixed probe set, N ≥ 2.
        after: Those of the same set later.

    Returns:
        Five distances of each unit; NaN for a unit with a value that is not finite.

    Raises:
        ValueError: If the shapes differ or there are fewer than two values a unit.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> shift = activation_shift(x, x + 3)
        >>> shift.wasserstein.item(), shift.wasserstein_normalised.item(), shift.gaussian_kl.item()
        (3.0, 3.0, 4.5)
    """
    if before.shape != after.shape or len(before) < 2:
        raise ValueError(
            "Activation shift compares the same two or more samples at two times, got activations of shape "
            f"{tuple(before.shape)} and {tuple(after.shape)}; run one fixed probe set both times."
        )
    first, second = (_finite(part) for part in (before, after))
    wasserstein = (first.sort(0).values - second.sort(0).values).abs().mean(0)
    means, variances = zip(*(_moments(part) for part in (first, second)), strict=True)
    pooled = ((variances[0] + variances[1]) / 2).sqrt()
    distance = means[1] - means[0]
    ratio = variances[1] / variances[0]
    kl = (ratio - 1 - ratio.log() + distance.square() / variances[0]) / 2
    return ActivationShift(
        wasserstein,
        torch.where(pooled == 0, torch.nan, wasserstein / pooled),
        distance.abs(),
        (variances[1] - variances[0]).abs(),
        torch.where((variances[0] == 0) | (variances[1] == 0), torch.nan, kl),
    )


def _finite(part: Tensor) -> Tensor:
    values = part.detach().cpu().double()
    # Infinity minus infinity would be NaN in some distances and infinity in others.
    return torch.where(values.isfinite().all(0), values, torch.nan)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    # Shifted by a value of its own, a constant unit has a variance of exactly 0.
    shifted = values - values[0]
    return values[0] + shifted.mean(0), shifted.var(0, correction=0)
