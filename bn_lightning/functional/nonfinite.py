"""Count NaN and infinities per channel, without waiting for the device.

Reduced are all axes but the channel axis: the batch for `[N, C]`, batch and positions for `[N, C, L]` and
`[N, C, H, W]`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def count_channel_nonfinite(x: Float[Tensor, "..."], channel_dim: int) -> Int64[Tensor, " c"]:
    """Count NaN and infinities of each channel exactly.

    Args:
        x: At least one axis, of any floating type; not changed.
        channel_dim: The axis that is kept.

    Returns:
        int64 `[C]`, on the device of `x`.

    Example:
        >>> count_channel_nonfinite(torch.tensor([[1.0, float("nan")], [2.0, float("inf")]]), 1).tolist()
        [0, 2]
    """
    x = x.detach().movedim(channel_dim, 0)
    # x - x is 0 for finite values and NaN, which is not zero, for all others.
    return torch.count_nonzero((x - x).flatten(1) if x.dim() > 1 else (x - x)[:, None], 1)
