"""Let learning-rate schedules pass faster: after n steps the rate is that of step ``speed·n`` of the schedule."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bn_lightning.callbacks._compat import LightningModule, Trainer
from bn_lightning.callbacks._recipe_report import RecipeChange

_ITEM = "decay_faster"
Undo = Callable[[Callable[[], None]], object]


def speed_up_schedules(
    trainer: "Trainer", module: "LightningModule", speed: int, *, undo: Undo, resumed: bool
) -> list[RecipeChange]:
    """Let every scheduler of a Trainer pass `speed` times as fast.

    Any scheduler of torch, and any subclass of `LRScheduler`, is stepped `speed` times at each of its steps, which
    is exact whatever its formula: ``γ^speed`` for exponential decay, a period of ``step_size/speed`` and so on, in
    warm-ups too. Past the rate with which the unchanged run would end only steps that lower the rate are taken: the
    upward half of a cosine, which that run would not have reached, is not entered. `ReduceLROnPlateau` follows a
    metric instead of time: its patience and cooldown are divided, rounded up.

    Args:
        trainer: A Trainer whose schedulers are made, and restored where it resumes.
        module: Its module.
        speed: How many steps to take for one.
        undo: Is given what makes each scheduler pass as before.
        resumed: Whether a checkpoint of a run with the same speed was restored, with it the divided patience.

    Returns:
        One entry for each scheduler.
    """
    changes = []
    for index, config in enumerate(trainer.lr_scheduler_configs):
        scheduler: Any = config.scheduler
        name = f"{type(scheduler).__name__} {index}"
        if isinstance(scheduler, ReduceLROnPlateau):
            changes.append(_shorten_patience(scheduler, name, speed, resumed=resumed))
        elif isinstance(scheduler, LRScheduler):
            kind = type(scheduler)
            _step_often(scheduler, speed, planned_steps(trainer, module, config) - 1)
            undo(partial(setattr, scheduler, "__class__", kind))
            changes.append(RecipeChange(_ITEM, name, "1 step at a time", f"{speed} steps at a time"))
        else:
            reason = "left: it is no torch LRScheduler, so how it counts time is not known; shorten it yourself"
            changes.append(RecipeChange(_ITEM, name, "its own steps", reason, left=True))
    return changes


def planned_steps(trainer: "Trainer", module: "LightningModule", config: Any) -> float:
    """How often the Trainer will step a scheduler in the whole run.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        config: Lightning's configuration of the scheduler.

    Returns:
        The number, infinite where the run has no known length or the module steps its schedulers itself.
    """
    if not module.automatic_optimization:
        return math.inf
    updates = trainer.estimated_stepping_batches
    if config.interval == "step":
        # Lightning answers -1 for data without a length.
        return updates // config.frequency if updates > 0 else math.inf
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    if updates > 0 and math.isfinite(updates) and math.isfinite(per_epoch):
        epochs = min(epochs, math.ceil(updates / math.ceil(per_epoch)))
    return epochs // config.frequency


def _shorten_patience(scheduler: ReduceLROnPlateau, name: str, speed: int, *, resumed: bool) -> RecipeChange:
    old = f"patience={scheduler.patience}, cooldown={scheduler.cooldown}"
    if resumed:
        return RecipeChange(_ITEM, name, "a restored scheduler", f"{old}, as restored")
    # The rate falls after patience + 1 epochs without improvement.
    scheduler.patience = math.ceil((scheduler.patience + 1) / speed) - 1
    scheduler.cooldown = math.ceil(scheduler.cooldown / speed)
    return RecipeChange(_ITEM, name, old, f"patience={scheduler.patience}, cooldown={scheduler.cooldown}")


def _step_often(scheduler: LRScheduler, speed: int, last: float) -> None:
    """Make a scheduler take several steps at a time.

    By a class of its own: a step kept on the instance would be written into every checkpoint.

    Args:
        scheduler: Changed in place; it keeps its name and its state.
        speed: How many steps to take for one.
        last: The last step that an unchanged run uses.
    """
    kind: Any = type(scheduler)
    end = _last_step(scheduler)
    last = min(last, end)
    held = False

    def step(self: Any, epoch: Any = None) -> None:
        nonlocal held
        if epoch is not None:
            kind.step(self, min(epoch * speed, end))
            return
        for _ in range(speed):
            if _steps_taken(self) < last:
                kind.step(self)
            elif not held and _steps_taken(self) < end:
                held = not _lowers(self, kind)

    name_space = {"step": step, "__module__": kind.__module__, "__doc__": kind.__doc__}
    scheduler.__class__ = type(kind.__name__, (kind,), name_space)


def _lowers(scheduler: Any, kind: Any) -> bool:
    """Take one step, and take it back if a rate rises, or falls below 0."""
    groups = scheduler.optimizer.param_groups
    state = copy.deepcopy(scheduler.state_dict())
    # Momentum may be scheduled too.
    settings = [{key: _copied(value) for key, value in group.items() if key != "params"} for group in groups]
    kind.step(scheduler)
    if all(0 <= float(group["lr"]) <= float(old["lr"]) for group, old in zip(groups, settings, strict=True)):
        return True
    scheduler.load_state_dict(state)
    for group, old in zip(groups, settings, strict=True):
        for key, value in old.items():
            # A tensor rate is shared with compiled or captured optimizer code, so it is changed in place.
            group[key] = group[key].copy_(value) if isinstance(value, Tensor) else value
    return False


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _last_step(scheduler: Any) -> float:
    """The last step that a scheduler knows: some, such as `OneCycleLR`, refuse to go on."""
    if not (parts := getattr(scheduler, "_schedulers", ())):
        total = getattr(scheduler, "total_steps", None)
        return math.inf if total is None else total - 1
    if (milestones := getattr(scheduler, "_milestones", None)) is not None:  # of SequentialLR
        return sum(milestones[-1:]) + _last_step(parts[-1])
    return min(_last_step(part) for part in parts)


def _steps_taken(scheduler: Any) -> int:
    # A ChainedScheduler counts in its parts only.
    return scheduler.last_epoch if hasattr(scheduler, "last_epoch") else _steps_taken(scheduler._schedulers[0])
