"""The batch statistics of one norm: rows in the precision of its kernel, summed in float64 now and then."""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.functional.population import BatchStatistics, batch_statistics
from bn_lightning.surgery.statistics.momentum_average import MomentumAverage
from bn_lightning.surgery.statistics.running_statistics import running_statistics

BATCHES_A_REDUCTION = 64


class NormStatistics:
    """The batch statistics of one norm: rows of the running reduction, then float64 sums on the CPU.

    Args:
        name: The norm's path in the model.
        norm: The norm, with running statistics.
        average: Is fed with the batches in their order too, if given.

    Attributes:
        sums: What was reduced so far; None before the first batch.
        counts: Values a channel of each row since.
        broken: Of the first row with NaN or infinity, what `new_row` was told of it; None while there is none.
    """

    def __init__(self, name: str, norm: _BatchNorm, *, average: MomentumAverage | None = None) -> None:
        self.name = name
        self.norm = norm
        self.channels = norm.num_features
        self.buffer = running_statistics(norm)[0]
        self.dtype = torch.float64 if self.buffer.dtype == torch.float64 else torch.float32
        self.average = average
        self.sums: BatchStatistics | None = None
        self.broken: tuple[int, int] | None = None
        self.counts: list[int] = []
        self.kept = 0  # rows of earlier batches
        self._places: list[tuple[int, int]] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def new_row(self, count: int, place: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """Where the mean and the unbiased variance of the next batch, of `count` values, are to be written.

        Args:
            count: Values a channel.
            place: Which batch this is, and which of all norm calls, to name it by if it is not finite.

        Returns:
            Two rows, ``[C]`` each.
        """
        row = len(self.counts)
        if row == len(self._means):
            # Few rows for few batches: a row is a tensor of its own.
            shape, device = (max(row, 8), self.channels), self.buffer.device
            self._means += torch.zeros(shape, dtype=self.dtype, device=device).unbind()
            self._variances += torch.zeros(shape, dtype=self.dtype, device=device).unbind()
        self.counts.append(count)
        self._places.append(place)
        return self._means[row], self._variances[row]

    def keep_only(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        del self.counts[rows:], self._places[rows:]

    def reduce(self) -> None:
        """Add the rows to the float64 sums and start over with the rows."""
        if not self.counts:
            return
        rows = len(self.counts)
        means, variances = (torch.stack(table[:rows]).cpu() for table in (self._means, self._variances))
        sums = batch_statistics(torch.tensor(self.counts, dtype=torch.float64), means, variances)
        self.sums = sums if self.sums is None else self.sums.merged(sums)
        if self.average is not None:
            self.average.add(means, variances)
        if not (sums.mean.isfinite().all() and sums.m2.isfinite().all()):
            finite = means.isfinite().all(1) & variances.isfinite().all(1)
            if self.broken is None and not finite.all():
                self.broken = self._places[int(finite.int().argmin())]
            # A non-finite row would poison its next user: 0 · nan is nan in the update that overwrites it.
            self._means.clear()
            self._variances.clear()
        self.keep_only(0)
        self.kept = 0
