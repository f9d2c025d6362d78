"""Noise whose distribution changes at every step, the part of noisy batch norm that undoes stable distributions.

Of `[N, C, ...]` a unit is a channel (axis 1) and a sample a row (axis 0). The distribution is drawn for each of
the C channels at each call; scale and shift are drawn from it for each of the N·C pairs of a sample and a channel, and
all positions behind, L of `[N, C, L]` or H·W of `[N, C, H, W]`, share them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.errors import NormOptionError


class ActivationNoise(nn.Module):
    """Scales and shifts each unit of each sample at random in training mode; hands its input on in evaluation mode.

    At each call and for each unit j: μ_j ~ U(shift_range), σ_j ~ U(scale_range); for each sample i:
    m_ij ~ U(μ_j − shift_width, μ_j + shift_width), s_ij ~ N(σ_j, scale_std²); then a_ij ← s_ij·a_ij + m_ij. So the
    distribution of a unit has another mean and variance at each step, and samples within a step differ in theirs.

    Source: Santurkar et al. (2018), "How Does Batch Normalization Help Optimization?", section 2.1 and appendix A. The
    paper writes N(σ, .1) and does not say whether .1 is a variance; here it is a standard deviation. It speaks of units
    and samples alone; that the positions of a channel share their noise is our reading, as they share their norm.

    Draws come from torch's global generator of the input's device, like dropout's: two passes from the same random
    state meet the same noise, which is what measurements of gradient shift need. No gradient flows into the noise.

    Args:
        shift_range: Bounds of the mean of the shift, in the unit of the activation.
        scale_range: Bounds of the mean of the scale.
        shift_width: How far the shift of a sample may lie from that mean.
        scale_std: Standard deviation of the scale over samples.

    Raises:
        NormOptionError: If bounds are not two ascending finite numbers, or a width is negative or not finite.

    Example:
        >>> noise = ActivationNoise(shift_range=(2.0, 2.0), scale_range=(3.0, 3.0), shift_width=0.0, scale_std=0.0)
        >>> noise(torch.ones(1, 2)).tolist(), noise.eval()(torch.ones(1, 2)).tolist()
        ([[5.0, 5.0]], [[1.0, 1.0]])
    """

    def __init__(
        self,
        *,
        shift_range: Sequence[float] = (-0.5, 0.5),
        scale_range: Sequence[float] = (1.0, 1.25),
        shift_width: float = 0.1,
        scale_std: float = 0.1,
    ) -> None:
        super().__init__()
        self.shift_range = _bounds("shift_range", shift_range)
        self.scale_range = _bounds("scale_range", scale_range)
        self.shift_width = _width("shift_width", shift_width)
        self.scale_std = _width("scale_std", scale_std)

    def forward(self, x: Tensor) -> Tensor:
        """Add the noise.

        Args:
            x: `[N, C, ...]`, floating-point.

        Returns:
            The same shape and type; `x` itself in evaluation mode.
        """
        if not self.training:
            return x
        unit, pair = (1, x.shape[1]), (x.shape[0], x.shape[1])
        # Half-precision numbers would give only a few hundred different shifts.
        options: dict[str, Any] = {"device": x.device, "dtype": torch.promote_types(x.dtype, torch.float32)}
        shift = _uniform(torch.rand(unit, **options), *self.shift_range)
        scale = _uniform(torch.rand(unit, **options), *self.scale_range)
        shift = shift + _uniform(torch.rand(pair, **options), -self.shift_width, self.shift_width)
        scale = scale + self.scale_std * torch.randn(pair, **options)
        behind = (*pair, *[1] * (x.ndim - 2))
        return x * scale.to(x.dtype).view(behind) + shift.to(x.dtype).view(behind)

    def extra_repr(self) -> str:
        """The arguments, as they would be written."""
        return (
            f"shift_range={self.shift_range}, scale_range={self.scale_range}, shift_width={self.shift_width}, "
            f"scale_std={self.scale_std}"
        )


def _uniform(share: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * share


def _bounds(name: str, given: Sequence[float]) -> tuple[float, float]:
    values = tuple(float(value) for value in given)
    # A comparison with infinity or NaN is False here too.
    if len(values) != 2 or not -float("inf") < values[0] <= values[1] < float("inf"):
        raise NormOptionError(f"{name} is a lower and an upper bound, such as (-0.5, 0.5), not {given!r}.")
    return values[0], values[1]


def _width(name: str, given: float) -> float:
    if not 0 <= given < float("inf"):
        raise NormOptionError(f"{name} is a number of 0 or more, not {given!r}.")
    return float(given)
