"""Batch norm that normalises with its running averages already while it trains: the thing not to do."""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class MovingAverageNorm(_BatchNorm):
    """Normalises with the running averages in training too, which no gradient passes through.

    It is here to be compared with batch norm, not to be used: an optimizer step and the normalisation undo each other,
    so weights can grow without bound while the loss stays. Evaluation does the same as `nn.BatchNorm2d`. In training
    the averages of the batches *before* normalise, and then take this batch in; they start at mean 0 and variance 1.
    Reduces `(N, C)`, `(N, C, L)`, `(N, C, H, W)` and longer over all axes but 1.

    Source: Ioffe 2017, "Batch Renormalization", section 3, which warns of it, as does Ioffe & Szegedy 2015, section 2.

    Args:
        num_features: Length of the channel axis.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running averages; None for the mean over all batches so far.
        affine: Whether to learn a scale and a shift per channel.

    Example:
        >>> import torch
        >>> norm, x = MovingAverageNorm(2), torch.randn(8, 2)
        >>> torch.equal(norm(x), x / (1 + norm.eps) ** 0.5)  # before the first batch the averages are 0 and 1
        True
        >>> torch.allclose(norm.running_mean, 0.1 * x.mean(0))
        True
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, affine: bool = True
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the averages of the batches before.

        Args:
            input: `(N, C, …)`.

        Returns:
            A tensor of the same shape.
        """
        self._check_input_dim(input)
        mean, variance = self.running_mean, self.running_var
        assert mean is not None  # noqa: S101 - the constructor always makes both
        assert variance is not None  # noqa: S101
        normalised = F.batch_norm(input, mean.clone(), variance.clone(), self.weight, self.bias, False, 0.0, self.eps)
        if self.training:
            self._take_in(input.detach(), mean, variance)
        return normalised

    def _take_in(self, batch: Tensor, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None  # noqa: S101 - the constructor always makes it
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        # torch's own update, so that the averages are those that batch norm would keep.
        F.batch_norm(batch, mean, variance, None, None, True, share, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"MovingAverageNorm({self.num_features}) takes (N, {self.num_features}, …), got {tuple(input.shape)}."
            )
