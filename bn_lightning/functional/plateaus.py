"""How much of a surface is flat, by the gradient's norm at its points.

All axes are reduced: a line ``[A]`` and a plane ``[A, B]`` are both a set of points.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def plateau_share(gradient_norms: Float[Tensor, "..."], fraction: float, reference: float | None = None) -> float:
    """The share of points whose gradient norm is below `fraction` of the largest among them, or of another.

    Im et al. (2016), "An empirical analysis of the optimization of deep network loss surfaces", observe in pictures
    that networks with batch norm have no plateaus; the measure is ours. Each scale has a blind spot. The largest among
    the points makes the rest look flat where a corner of the surface is very steep. A norm that is the same for several
    surfaces, as that at the initial weights, finds no plateau in a run that starts on one. Report both.

    Args:
        gradient_norms: ‖g‖₂ at each point, in loss per unit of the parameters. A point whose gradient is not finite is
            counted as a point, and as none of a plateau.
        fraction: Between 0 and 1.
        reference: A gradient norm to compare with in place of the largest.

    Returns:
        The share, from 0 to 1; NaN where no gradient is finite, or all are 0 and there is no other reference: what is
        flat everywhere, as a dead network's surface, has no scale of its own.

    Raises:
        ValueError: If fraction or reference is out of range.

    Example:
        >>> plateau_share(torch.tensor([0.01, 0.5, 1.0, 0.02]), 0.1)
        0.5
    """
    if not 0 < fraction < 1:
        raise ValueError(f"A plateau is below a fraction between 0 and 1 of the largest gradient, got {fraction}.")
    if reference is not None and not (math.isfinite(reference) and reference > 0):
        raise ValueError(f"The reference is a gradient norm, finite and above 0; got {reference}.")
    finite = gradient_norms[gradient_norms.isfinite()]
    scale = reference or (float(finite.max()) if len(finite) else 0.0)
    if not len(finite) or not scale:
        return math.nan
    # Sums in float64 hold counts exactly.
    return float((gradient_norms < fraction * scale).to(torch.float64).mean())
