"""Count, mean and central moments per channel, of one batch and of many merged.

`batch_moments` reduces over all axes but the channel axis: the batch for ``[N, C]``, batch and length
for ``[N, C, L]``, batch, rows and columns for ``[N, C, H, W]``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """How many values there are, their mean, and the sums of their centred powers, per channel.

    Attributes:
        count: n, the number of values per channel, int64; a scalar or of the means' shape.
        mean: μ, float64, ``[C]`` (or any shape that merging is to be done over at once).
        m2: Σ (x − μ)², float64, of the mean's shape.
        m3: Σ (x − μ)³, float64, of the mean's shape.
        m4: Σ (x − μ)⁴, float64, of the mean's shape.

    Example:
        >>> moments = batch_moments(torch.tensor([[1.0], [2.0], [6.0]]))
        >>> moments.mean.item(), moments.variance(unbiased=True).item()
        (3.0, 7.0)
    """

    count: Int[Tensor, "..."]
    mean: Float[Tensor, "*channels"]
    m2: Float[Tensor, "*channels"]
    m3: Float[Tensor, "*channels"]
    m4: Float[Tensor, "*channels"]

    def variance(self, *, unbiased: bool = False) -> Float[Tensor, "*channels"]:
        """The variance per channel: Σ (x − μ)² over n, or over n − 1 when unbiased.

        Args:
            unbiased: Divide by n − 1, as for a sample drawn from a larger population.

        Returns:
            The variance; nan where it would divide by zero.
        """
        return self.m2 / (self.count - int(unbiased)).clamp(min=0)

    def skewness(self) -> Float[Tensor, "*channels"]:
        """The standardised third moment √n·Σ(x − μ)³ / (Σ(x − μ)²)^1.5; 0 for a symmetric distribution.

        Returns:
            The (biased) skewness per channel; nan where the variance is 0.
        """
        return self.count.double().sqrt() * self.m3 / self.m2**1.5

    def kurtosis(self) -> Float[Tensor, "*channels"]:
        """The *excess* kurtosis n·Σ(x − μ)⁴ / (Σ(x − μ)²)² − 3; 0 for a normal distribution.

        Returns:
            The (biased) excess kurtosis per channel; nan where the variance is 0.
        """
        return self.count * self.m4 / self.m2.square() - 3

    def standardised(self) -> "Moments":
        """The moments of (x − μ)/σ: mean 0, and nan above it where the variance is 0.

        Returns:
            Moments of the same count, from which location and scale have been removed.
        """
        deviation = self.variance().sqrt()
        deviation = torch.where(deviation == 0, torch.nan, deviation)
        return Moments(
            self.count,
            torch.zeros_like(self.mean),
            self.m2 / deviation**2,
            self.m3 / deviation**3,
            self.m4 / deviation**4,
        )


def batch_moments(x: Float[Tensor, "..."], channel_dim: int = 1) -> Moments:
    """The moments of one batch per channel, in float64.

    The values are shifted by one of their own before anything is summed, so a large mean costs no
    digits: the differences of nearby floating-point numbers are exact.

    Args:
        x: The values, at least two axes, of any floating type.
        channel_dim: The axis that is kept.

    Returns:
        The moments, ``[C]`` each, on x's device.

    Raises:
        ValueError: If x has fewer than two axes.

    Example:
        >>> batch_moments(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).mean.tolist()
        [1.0, 20.0]
    """
    if x.dim() < 2:
        raise ValueError(
            f"Moments per channel need a batch axis beside the channel axis, got a tensor of shape {tuple(x.shape)}; "
            "add an axis with x.unsqueeze."
        )
    # Apple's accelerator has no float64; shifted float32 sums lose little there.
    precision = torch.float32 if x.device.type == "mps" else torch.float64
    values = x.detach().movedim(channel_dim, 0).flatten(1).to(precision)
    channels, n = values.shape
    pivot = values[:, :1] if n else values.new_zeros(channels, 1)
    shifted = values - pivot
    mean = shifted.mean(1, keepdim=True) if n else torch.zeros_like(pivot)
    centred = shifted - mean
    squares = centred.square()
    sums = [
        (pivot + mean).squeeze(1),
        squares.sum(1),
        (squares * centred).sum(1),
        squares.square().sum(1),
    ]
    if precision is torch.float32:
        sums = [part.cpu().double() for part in sums]
    return Moments(torch.tensor(n, device=sums[0].device), *sums)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of values together, from the moments of each.

    Source: Chan, Golub & LeVeque (1979) for the variance; Pébay (2008), "Formulas for robust,
    one-pass parallel computation of covariances and arbitrary-order statistical moments", equations
    1.5 and 1.6 for the third and fourth. With δ = μ_b − μ_a and n = n_a + n_b, for instance::

        μ = μ_a + δ n_b/n        M2 = M2_a + M2_b + δ² n_a n_b/n

    Either side may be empty (count 0). Order and grouping do not matter beyond rounding.

    Args:
        a: Moments of the first set.
        b: Moments of the second set, of the same shape.

    Returns:
        The moments of the union.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> merge_moments(batch_moments(x[:1]), batch_moments(x[1:])).m2.item()
        14.0
    """
    count = a.count + b.count
    n = count.clamp(min=1).double()
    # Shares rather than counts: their powers stay near 1 where n⁴ would leave float64's exact range.
    share_a, share_b = a.count / n, b.count / n
    delta = b.mean - a.mean
    return Moments(
        count,
        a.mean + delta * share_b,
        a.m2 + b.m2 + delta**2 * n * share_a * share_b,
        a.m3
        + b.m3
        + delta**3 * n * share_a * share_b * (share_a - share_b)
        + 3 * delta * (share_a * b.m2 - share_b * a.m2),
        a.m4
        + b.m4
        + delta**4 * n * share_a * share_b * (share_a**2 - share_a * share_b + share_b**2)
        + 6 * delta**2 * (share_a**2 * b.m2 + share_b**2 * a.m2)
        + 4 * delta * (share_a * b.m3 - share_b * a.m3),
    )
