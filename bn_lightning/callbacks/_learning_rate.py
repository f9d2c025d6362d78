"""Multiply the learning rates of a Trainer's optimizers, whatever schedule they follow."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import Trainer

# What optimizers and torch's schedulers derive a rate from; the rest of a group, such as momentum, stays.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def scale_learning_rates(trainer: "Trainer", factor: float) -> tuple[tuple[float, float], ...]:
    """Multiply every rate of every parameter group, and what schedulers start from.

    Call it once the optimizers are made, from `on_fit_start` on, and before the first step. A run that is resumed has
    the multiplied rates in its checkpoint: do not call it there again.

    Args:
        trainer: Its optimizers and schedulers are changed.
        factor: What to multiply by, above 0.

    Returns:
        Before and after, for each distinct rate.

    Raises:
        ValueError: If the factor is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"A learning rate is multiplied by a number above 0, not by {factor}.")
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    before = dict.fromkeys(float(group["lr"]) for group in groups if "lr" in group)
    tensors: dict[int, Tensor] = {}
    for group in groups:
        for name in _RATES:
            if name in group:
                group[name] = _multiplied(group[name], factor, tensors)
    for config in trainer.lr_scheduler_configs:
        _scale(config.scheduler, factor, tensors)
    return tuple((rate, rate * factor) for rate in before)


def _multiplied(rate: Any, factor: float, tensors: dict[int, Tensor]) -> Any:
    if not isinstance(rate, Tensor):
        return rate * factor
    # A tensor rate is shared with compiled or captured optimizer code, so it is changed in place; groups and schedulers
    # share it too, so it is changed once.
    if id(rate) not in tensors:
        tensors[id(rate)] = rate.mul_(factor)
    return rate


def _scale(scheduler: Any, factor: float, tensors: dict[int, Tensor]) -> None:
    for part in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        _scale(part, factor, tensors)
    for name in ("base_lrs", "_last_lr", "max_lrs", "min_lrs"):
        if isinstance(rates := getattr(scheduler, name, None), list):
            setattr(scheduler, name, [_multiplied(rate, factor, tensors) for rate in rates])
    for name in ("eta_min", "default_min_lr"):
        rate = getattr(scheduler, name, None)
        if isinstance(rate, int | float | Tensor) and id(rate) not in tensors:
            # Not in place: no optimizer's code holds such a tensor, and a module may give it to the next fit too.
            setattr(scheduler, name, rate * factor)
