"""Population statistics of a channel from the statistics of its batches: two estimators.

Inputs are per batch and channel, ``[K, C]`` for K batches. A batch of inputs ``[N, C]`` has m = N values
a channel, ``[N, C, L]`` m = N·L, ``[N, C, H, W]`` m = N·H·W.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BatchStatistics:
    """Sums over K batches from which either population estimate can be read; two of them add up.

    Everything is float64. Unlike means of variances, these merge exactly, so batches may be summed in
    groups and over ranks.

    Attributes:
        batches: K, a scalar.
        count: Σ m, a scalar.
        mean: The mean of all Σ m values, ``[C]``.
        m2: Their summed squared distance to that mean, ``[C]``.
        sum_of_means: Σ μ_B, each batch weighing the same, ``[C]``.
        sum_of_variances: Σ of the unbiased batch variances m/(m − 1)·σ²_B, ``[C]``.
    """

    batches: Float[Tensor, ""]
    count: Float[Tensor, ""]
    mean: Float[Tensor, " c"]
    m2: Float[Tensor, " c"]
    sum_of_means: Float[Tensor, " c"]
    sum_of_variances: Float[Tensor, " c"]

    def merged(self, other: "BatchStatistics") -> "BatchStatistics":
        """The sums over both sets of batches (Chan, Golub & LeVeque, 1979, for mean and m2).

        Args:
            other: Statistics of other batches of the same channels.

        Returns:
            Statistics of all the batches; either side may be empty.
        """
        count = self.count + other.count
        n = count.clamp(min=1)
        delta = other.mean - self.mean
        return BatchStatistics(
            self.batches + other.batches,
            count,
            self.mean + delta * (other.count / n),
            self.m2 + other.m2 + delta.square() * (self.count * other.count / n),
            self.sum_of_means + other.sum_of_means,
            self.sum_of_variances + other.sum_of_variances,
        )

    def pooled(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and variance of all values seen, as if the batches were one set.

        By the law of total variance this is the size-weighted mean of the biased batch variances plus
        the size-weighted variance of the batch means. The variance is biased (over n, not n − 1): it
        describes the values that were seen, and n is large.

        Returns:
            The mean and the variance, ``[C]`` each.
        """
        return self.mean, self.m2 / self.count

    def paper(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and variance by Algorithm 2 of Ioffe & Szegedy (2015), steps 8 to 10.

        ``E[x] = E_B[μ_B]`` and ``Var[x] = m/(m − 1)·E_B[σ²_B]``. Every batch weighs the same, and a
        shorter batch brings its own m.

        Returns:
            The mean and the variance, ``[C]`` each.
        """
        return self.sum_of_means / self.batches, self.sum_of_variances / self.batches


def batch_statistics(
    counts: Float[Tensor, " k"],
    means: Float[Tensor, "k c"],
    unbiased_variances: Float[Tensor, "k c"],
) -> BatchStatistics:
    """Sum up the statistics of K batches in float64.

    Args:
        counts: m, the values a channel of each batch; at least 2.
        means: The batch means.
        unbiased_variances: The batch variances over m − 1.

    Returns:
        The sums.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [4.0], [10.0]])
        >>> halves = x.view(2, 2, 1)
        >>> counts = torch.tensor([2.0, 2.0])
        >>> sums = batch_statistics(counts, halves.mean(1), halves.var(1))
        >>> [statistic.item() for statistic in sums.pooled()]  # of all four values
        [4.0, 14.0]
        >>> [statistic.item() for statistic in sums.paper()]  # blind to the spread of the batch means
        [4.0, 10.0]
    """
    counts, means, variances = counts.double(), means.double(), unbiased_variances.double()
    count = counts.sum()
    weights = counts.unsqueeze(1)
    mean = (means * weights).sum(0) / count
    within = (variances * (weights - 1)).sum(0)
    between = ((means - mean).square() * weights).sum(0)
    batches = torch.tensor(float(len(counts)), dtype=torch.float64, device=counts.device)
    return BatchStatistics(batches, count, mean, within + between, means.sum(0), variances.sum(0))
