"""Batch norm whose output is made unstable again, to tell its effect from that of stable distributions.

The mean and variance of each of the C channels are taken over N of `[N, C]`, N·L of `[N, C, L]` and N·H·W of
`[N, C, H, W]`, in training mode those of the batch, in evaluation mode the running ones. What the noise shares is said
in `activation_noise`.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.errors import BatchSizeError
from bn_lightning.layers.activation_noise import ActivationNoise


class NoisyBatchNorm(_BatchNorm):
    """Batch norm for `[N, C]`, `[N, C, L]`, `[N, C, H, W]`, …, followed by `ActivationNoise` in training mode.

    With it the next layer meets another distribution at every step, by more than without batch norm. Santurkar
    et al. (2018, section 2.1, figure 2) found that such networks train as fast as with plain batch norm, and conclude
    that stable distributions are not what it works by.

    It is a factory for `norm=` of insertion: ``insert_batch_norm(model, args, norm=NoisyBatchNorm)``. In evaluation
    mode it is the plain batch norm, with the same parameters, buffers and keys. The noise is a child with a mode of its
    own, which recalibration leaves in evaluation mode: population statistics are those without noise, under which the
    model is evaluated. The running statistics of training are those behind the noise of the layers before.
    ``SyncBatchNorm.convert_sync_batchnorm`` replaces the layer and with it the noise.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics, from 0 to 1; None for the mean over all batches.
        affine: Whether scale and shift are learned. They come before the noise.
        track_running_stats: Whether running statistics are kept.
        shift_range: Bounds of the mean of the shift.
        scale_range: Bounds of the mean of the scale.
        shift_width: How far the shift of a sample may lie from that mean.
        scale_std: Standard deviation of the scale over samples.

    Raises:
        NormOptionError: If a setting of the noise is out of range.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> norm, x = NoisyBatchNorm(3), torch.randn(8, 3)
        >>> torch.equal(norm(x), norm(x)), torch.equal(norm.eval()(x), norm(x))
        (False, True)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        shift_range: Sequence[float] = (-0.5, 0.5),
        scale_range: Sequence[float] = (1.0, 1.25),
        shift_width: float = 0.1,
        scale_std: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.noise = ActivationNoise(
            shift_range=shift_range, scale_range=scale_range, shift_width=shift_width, scale_std=scale_std
        )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, scale, shift, and in training mode add the noise.

        Args:
            input: `[N, C, ...]`.

        Returns:
            The same shape.

        Raises:
            BatchSizeError: If the input has no batch or no channel axis.
        """
        return self.noise(super().forward(input))

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise BatchSizeError(f"NoisyBatchNorm takes [N, C, ...], got a tensor of shape {tuple(input.shape)}.")
