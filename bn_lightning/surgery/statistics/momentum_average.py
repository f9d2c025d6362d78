"""Go on with a norm's running average, in float64, from the statistics of its batches."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.functional.population import BatchStatistics
from bn_lightning.surgery.statistics.running_statistics import running_statistics


class MomentumAverage:
    """The running average of a norm after further batches, as `torch.nn.BatchNorm1d` defines it.

    ``running = (1 - momentum) * running + momentum * batch`` with the unbiased batch variance; a momentum of
    None weighs all batches since the first equally. The norm itself is not touched.

    Args:
        norm: A norm with running statistics, from which the average starts.

    Attributes:
        mean: The average mean so far, ``[C]``, float64.
        variance: The average variance so far, ``[C]``, float64.

    Example:
        >>> average = MomentumAverage(torch.nn.BatchNorm1d(1, momentum=0.5))
        >>> average.add(torch.tensor([[4.0], [4.0]]), torch.tensor([[1.0], [1.0]]))
        >>> average.mean.item(), average.variance.item()
        (3.0, 1.0)
    """

    def __init__(self, norm: _BatchNorm) -> None:
        # A copy, also of a buffer that is float64 already.
        self.mean, self.variance = (buffer.detach().cpu().double().clone() for buffer in running_statistics(norm))
        self._momentum = norm.momentum
        tracked = norm.num_batches_tracked
        self._tracked = 0 if tracked is None else int(tracked)

    def add(self, means: Tensor, variances: Tensor) -> None:
        """Take the momentum steps of K batches.

        Args:
            means: Their means, ``[K, C]``.
            variances: Their unbiased variances, ``[K, C]``.
        """
        for mean, variance in zip(means.double(), variances.double(), strict=True):
            self._tracked += 1
            weight = 1 / self._tracked if self._momentum is None else self._momentum
            self.mean = torch.lerp(self.mean, mean, weight)
            self.variance = torch.lerp(self.variance, variance, weight)

    def in_place_of(self, sums: BatchStatistics) -> BatchStatistics:
        """Sums whose equally weighted means are this average, so that ranks merge by their numbers of batches.

        Args:
            sums: The sums over the batches that were added.

        Returns:
            The same counts, with the average in place of the batches' own means and variances.
        """
        return replace(sums, sum_of_means=self.mean * sums.batches, sum_of_variances=self.variance * sums.batches)
