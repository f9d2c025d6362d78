"""Follow channels from one module to another by sending their numbers through the model.

A per-channel affine map commutes with an operation that moves values about, averages or takes the
maximum within a channel. Whether an operation mixes channels, or mixes in a border of zeros, shows
when every value is replaced by its channel's number: whatever arrives must be one of the numbers.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bn_lightning.surgery.sandbox import sandbox

# Numbers up to 2 · 64 are exact in every floating-point type in use; larger ones go in two runs, digit by digit.
_BASE = 64


class _AllSeen(Exception):
    """Every input that was waited for has arrived, so the rest of the forward would be wasted."""


def follow_channels(
    model: nn.Module,
    run: Callable[[], Any],
    sources: Mapping[str, int],
    targets: Mapping[str, int],
    *,
    channels: int,
    arrivals: int,
    identities: tuple[str, ...] = (),
) -> dict[str, tuple[int, ...]]:
    """Find which channel of the sources arrives at each input channel of the targets.

    Args:
        model: The model; it is left as it was.
        run: Runs the model on the example.
        sources: Modules whose outputs are replaced by numbers of their channels, with their channel axis.
        targets: Modules whose inputs are looked at, with their channel axis.
        channels: How many channels each source has.
        arrivals: How many calls of the targets one run makes.
        identities: Modules that are to hand on what they receive.

    Returns:
        For each target the channel at each of its inputs; targets that meet anything else are left out.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(6, 1))
        >>> x = torch.randn(4, 1, 3)
        >>> follow_channels(model, lambda: model(x), {"0": -2}, {"2": -1}, channels=2, arrivals=1)
        {'2': (0, 0, 0, 1, 1, 1)}
    """
    # In no order that a mean over neighbouring channels would keep.
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))

    def send(numbers: Tensor) -> dict[str, list[Tensor]]:
        return _one_run(model, run, sources, targets, numbers, arrivals, identities)

    upwards = _found(send, order, targets, arrivals)
    if not upwards:
        return {}
    # A maximum hides what is less than the numbers, as a border of zeros or another channel, and a minimum what is
    # more: with the sign turned that comes out.
    downwards = _found(lambda numbers: _negated(send(-numbers)), order, targets, arrivals)
    return {path: where for path, where in upwards.items() if downwards.get(path) == where}


def _negated(seen: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {path: [-values for values in arrived] for path, arrived in seen.items()}


def _found(
    send: Callable[[Tensor], dict[str, list[Tensor]]], order: Tensor, targets: Mapping[str, int], arrivals: int
) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[Tensor | None]] = {path: [] for path in targets}
    divisor = 1
    while True:
        seen = send(order // divisor % _BASE + _BASE)
        if sum(map(len, seen.values())) != arrivals:
            return {}
        for path, arrived in seen.items():
            digits = [_one_number_a_channel(values, targets[path]) for values in arrived]
            for number, digit in enumerate(digits):
                if divisor == 1:
                    found[path].append(digit)
                else:
                    before = found[path][number]
                    found[path][number] = None if before is None or digit is None else before + digit * divisor
        divisor *= _BASE
        if divisor >= len(order):
            return {path: where for path, calls in found.items() if (where := _agreed(calls, order)) is not None}


def _one_run(
    model: nn.Module,
    run: Callable[[], Any],
    sources: Mapping[str, int],
    targets: Mapping[str, int],
    numbers: Tensor,
    arrivals: int,
    identities: tuple[str, ...],
) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {path: [] for path in targets}

    def replace(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            axis = sources[path] % output.ndim
            column = numbers.to(output).view(-1, *[1] * (output.ndim - axis - 1))
            return column.expand(output.shape).clone()

        return hook

    def hand_on(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return args[0] if args else kwargs["input"]

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen[path].append((args[0] if args else kwargs["input"]).detach().cpu().clone())
            if sum(map(len, seen.values())) == arrivals:
                raise _AllSeen

        return hook

    handles = []
    try:
        # Before every other hook, which are those of inserted norms.
        handles += [
            model.get_submodule(path).register_forward_hook(hand_on, prepend=True, with_kwargs=True)
            for path in identities
        ]
        handles += [model.get_submodule(path).register_forward_hook(replace(path), prepend=True) for path in sources]
        # Behind an inserted norm on what the target reads.
        handles += [
            model.get_submodule(path).register_forward_pre_hook(look(path), with_kwargs=True) for path in targets
        ]
        # A model may refuse the unusual values further on; then too few arrive, and nothing is claimed.
        with sandbox(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), suppress(Exception):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _one_number_a_channel(values: Tensor, axis: int) -> Tensor | None:
    """The number that fills each channel; None where a channel holds several or one that was not sent."""
    rows = values.movedim(axis, 0).flatten(1)
    if rows.numel() == 0:
        return None
    digits = rows[:, :1].round()
    if not bool(((digits >= _BASE) & (digits < 2 * _BASE)).all()):
        return None
    # An average of equal numbers is off by its rounding; a border of zeros by far more, unless it is a tiny share.
    tolerance = 1e-5 * _BASE if values.dtype in (torch.float32, torch.float64) else 0.0
    if not bool(((rows - digits).abs() <= tolerance).all()):
        return None
    return digits[:, 0].long() - _BASE


def _agreed(calls: list[Tensor | None], order: Tensor) -> tuple[int, ...] | None:
    if not calls or any(call is None or not torch.equal(call, calls[0]) for call in calls if calls[0] is not None):
        return None
    first = calls[0]
    if first is None or int(first.max()) >= len(order):
        return None
    return tuple(torch.argsort(order)[first].tolist())
