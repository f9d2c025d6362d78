"""Which parameters of a model are scale-invariant: a norm behind them takes their scale out again."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.probes.objective import LossFn, Objective, batch_samples

Blocks = Sequence[Sequence[str]]
"""Each block is the paths of parameters that are rescaled together."""

TOLERANCE = 0.02
_JITTER = 0.1


def scale_invariant_blocks(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    loss_fn: LossFn | None = None,
    parameters: str | Sequence[str] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Find the blocks by rescaling each candidate, whatever norm or weight reparametrisation makes it invariant.

    A block w is scale-invariant if L(αw) = L(w), and then ∇L(αw) = ∇L(w)/α. Both are tested with α = 2, to 2 %, so a
    norm's epsilon has to be small beside the variance it is added to. A candidate is a parameter with two or more
    axes, or, if that fails, with all parameters of its module (a bias before a layer norm has to be rescaled too).

    The test is made near the model's point, not at it: parameters with fewer axes, and those that are 0 throughout,
    get normal noise of standard deviation 0.1 first. At initialisation all biases are 0, and there a linear layer in
    front of a rectifier and a norm looks invariant without its bias too; a head of 0 lets no gradient through.

    In evaluation mode batch norm divides by its running statistics and makes nothing invariant.

    Cost: one forward and backward pass, and one or two for each candidate. Nothing on the model changes.

    Args:
        model: The module, in the modes it is to be measured in.
        batches: A list of batches; the first that hold two samples are used.
        loss_fn: ``loss_fn(model, batch)``; by default a LightningModule's ``training_step``.
        parameters: fnmatch patterns on the parameters' paths; by default all that are trained.

    Returns:
        The blocks, in the order of registration; empty for a model without norms.

    Raises:
        TypeError: See `Objective`.
        ValueError: See `Objective`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        >>> x = torch.randn(32, 3)
        >>> scale_invariant_blocks(model, [x], loss_fn=lambda model, x: (model(x) - 1).square().mean())
        (('0.weight',),)
    """
    sizes = list(accumulate(batch_samples(batch) for batch in batches))
    enough = next((count for count, size in enumerate(sizes, 1) if size > 1), len(sizes))
    objective = Objective(model, batches[:enough], loss_fn=loss_fn, parameters=parameters)
    blocks = []
    with objective.guarded():
        point = _generic_point(objective)
        loss, gradient = objective(point)
        for name, value in objective.parameters.items():
            if value.dim() < 2:
                continue
            owner = name.rpartition(".")[0]
            module = tuple(other for other in objective.parameters if other.rpartition(".")[0] == owner)
            for block in dict.fromkeys(((name,), module)):
                if block not in blocks and _is_invariant(objective, point, block, loss, gradient):
                    blocks.append(block)
                    break
    return tuple(blocks)


def _generic_point(objective: Objective) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def moved(value: Tensor) -> Tensor:
        if value.dim() > 1 and value.any():
            return value.detach()
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        return value.detach() + _JITTER * noise.to(value)

    return {name: moved(value) for name, value in objective.parameters.items()}


def _is_invariant(
    objective: Objective,
    point: Mapping[str, Tensor],
    block: tuple[str, ...],
    loss: Tensor,
    gradient: Mapping[str, Tensor],
) -> bool:
    doubled, there = objective({**point, **{name: 2 * point[name] for name in block}}, block)
    if not bool(torch.isclose(doubled, loss, rtol=TOLERANCE, atol=0)):
        return False
    pairs = [(gradient[name].double(), 2 * there[name].double()) for name in block]
    size = sum(float(here.square().sum()) for here, _ in pairs)
    error = sum(float((here - twice).square().sum()) for here, twice in pairs)
    # Without a gradient there is nothing to tell an invariant block from a dead one by.
    return size > 0 and error <= TOLERANCE**2 * size
