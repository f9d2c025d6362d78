"""How much the output for a training example depends on the batch it is in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bn_lightning.errors import BatchSizeError
from bn_lightning.probes.objective import batch_samples
from bn_lightning.surgery.forward import Forward, call_model
from bn_lightning.surgery.sandbox import sandbox


@dataclass(frozen=True)
class OutputSpread:
    """The spread of outputs over batch companions, for one batch size.

    Attributes:
        batch_size: m, the example among them.
        spread: Standard deviation over draws of companions, in the unit of the output: the mean over examples
            and elements of the output. NaN where an output was not finite.
        relative: `spread` over the mean over elements of the standard deviation of the examples' mean outputs, so
            of what tells examples apart; NaN where that is 0.
        draws: Sets of companions drawn for each example.
    """

    batch_size: int
    spread: float
    relative: float
    draws: int


def output_spread(
    model: nn.Module,
    data: Any,
    examples: Sequence[int],
    *,
    batch_sizes: Sequence[int] = (2, 4, 8, 16, 32, 64),
    draws: int = 20,
    forward: Forward | None = None,
    seed: int = 0,
) -> tuple[OutputSpread, ...]:
    """Run chosen examples in many batches of drawn companions, and see how much their outputs vary.

    Source: Ioffe & Szegedy (2015), section 3.4: with batch norm "the training network no longer producing deterministic
    values for a given training example" is what regularises it. For each example and batch size m, m − 1 companions are
    drawn without replacement from the other samples, `draws` times; the standard deviation over draws is the
    unbiased one. Every batch starts from the same random state, so dropout masks, and the noise of noisy norms, do not
    count: only companions do.

    Cost: examples × draws forwards for each batch size. The model runs in the modes it is in; modes, buffers,
    gradients and random state come back, and companions are drawn from a generator of their own.

    Args:
        model: The module; in training mode, so that norms use their batch, or the spread is exactly 0.
        data: Samples to draw from, on the model's device: a nest of tensors with the samples on axis 0, as a batch is.
        examples: Positions in the data of the examples to follow.
        batch_sizes: Sizes m.
        draws: Sets of companions for each example, 2 or more.
        forward: ``forward(model, batch)`` gives the output, whose axis 0 is the batch; by default as in `call_model`.
        seed: Of the companions.

    Returns:
        One entry a batch size, in the order given.

    Raises:
        BatchSizeError: If a batch is to be larger than the data, or smaller than one.
        IndexError: If a position is outside of the data.
        ValueError: If there are no examples, fewer than two draws, or tensors of different lengths in the data.
        TypeError: If the output is no tensor with the batch on axis 0.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(200, 3)
        >>> small, large = output_spread(model, x, range(5), batch_sizes=(4, 64))
        >>> small.spread > 2 * large.spread, output_spread(model.eval(), x, [0], batch_sizes=(4,))[0].spread
        (True, 0.0)
    """
    count = _check(data, examples, batch_sizes, draws)
    inner: nn.Module = getattr(model, "_orig_mod", model)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with sandbox(inner), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for size in batch_sizes:
            means, spreads = [], []
            for example in examples:
                outputs = []
                for _ in range(draws):
                    others = torch.randperm(count - 1, generator=generator)[: size - 1]
                    # The positions behind the example move up by one, so that it is never its own companion.
                    rows = torch.cat([torch.tensor([example]), others + (others >= example)])
                    batch = tree_map(partial(_rows, rows), data)
                    torch.manual_seed(seed)
                    outputs.append(_first(call_model(inner, batch, forward), size))
                values = torch.stack(outputs)
                # Around one of its own values a constant has a variance of exactly 0.
                around = values - values[0]
                means.append(values[0] + around.mean(0))
                spreads.append(around.std(0).mean())
            spread = float(torch.stack(spreads).mean())
            apart = float(torch.stack(means).std(0).mean()) if len(means) > 1 else math.nan
            relative = spread / apart if apart else math.nan
            finite = math.isfinite(spread)
            found.append(OutputSpread(size, spread if finite else math.nan, relative if finite else math.nan, draws))
    return tuple(found)


def spread_numbers(found: Sequence[OutputSpread]) -> dict[str, float]:
    """All numbers by the name under which they are logged.

    Args:
        found: What `output_spread` returned.

    Returns:
        `output_spread_<m>` and `output_spread_relative_<m>` for each batch size m.

    Example:
        >>> spread_numbers([OutputSpread(8, 0.5, 0.25, 20)])
        {'output_spread_8': 0.5, 'output_spread_relative_8': 0.25}
    """
    numbers = {}
    for part in found:
        numbers[f"output_spread_{part.batch_size}"] = part.spread
        numbers[f"output_spread_relative_{part.batch_size}"] = part.relative
    return numbers


def _is_data(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dim() > 0


def _rows(rows: Tensor, part: Any) -> Any:
    return part[rows.to(part.device)] if _is_data(part) else part


def _check(data: Any, examples: Sequence[int], batch_sizes: Sequence[int], draws: int) -> int:
    lengths = {len(part) for part in tree_leaves(data) if _is_data(part)}
    if len(lengths) != 1:
        raise ValueError(
            f"The data is a tensor, or a nest of them, with the samples on axis 0; got lengths {sorted(lengths)}."
        )
    count = batch_samples(data)
    if not len(examples) or draws < 2:
        raise ValueError(
            f"A spread needs one example or more and two draws or more, got {len(examples)} examples and {draws} draws."
        )
    if outside := [example for example in examples if not 0 <= example < count]:
        raise IndexError(f"Examples are positions from 0 to {count - 1} in the data, not {outside[:5]}.")
    if wrong := [size for size in batch_sizes if not 1 <= size <= count]:
        raise BatchSizeError(f"Batches are of 1 to {count} samples, all that there are; asked for {wrong}.")
    return count


def _first(output: Any, size: int) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != size:
        shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
        raise TypeError(
            f"The output for a batch of {size} is a {type(output).__name__}{shape}, and must be a tensor with the "
            "batch on axis 0. Pass forward=lambda model, batch: ... that returns one."
        )
    return output[0].detach().cpu().double()
