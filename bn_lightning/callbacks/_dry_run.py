"""Run a `training_step` that optimizes manually without it changing a weight.

Such a step asks the module for its optimizers and steps them itself. Here it gets idle ones, made by the
module's own `configure_optimizers` and thrown away afterwards, so that the whole step can be run before
training: several networks, each with its optimizer, are all reached.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.optim import Optimizer

from bn_lightning.callbacks._compat import LightningModule


class IdleOptimizer:
    """Looks like a LightningOptimizer, and never changes a parameter.

    Args:
        optimizer: Whose settings it shows.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        # Not for its own attribute, which is missing while a copy is being made.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """Run the closure, if there is one, and leave the parameters alone."""
        return closure() if closure is not None else None

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: gradients are given back afterwards."""

    def toggle_model(self, *args: Any, **kwargs: Any) -> Any:
        """Do nothing, in a context."""
        return nullcontext()


class IdleScheduler:
    """Stands in for a learning-rate scheduler, and never steps.

    Args:
        scheduler: Whose settings it shows.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


@contextmanager
def idle_optimizers(module: "LightningModule") -> Iterator[None]:
    """Let a module that optimizes manually run its `training_step` without effect on its parameters.

    Inside, `optimizers()` and `lr_schedulers()` return idle ones, and `manual_backward`, `clip_gradients`,
    `toggle_optimizer` and their kin do nothing. Gradients can be taken with `torch.autograd.grad`, as penalties do.
    Parameters that the step writes itself, as a moving average of another network, get their values back.
    A module with automatic optimization is left as it is.

    Args:
        module: The LightningModule.

    Yields:
        Nothing.
    """
    if module.automatic_optimization:
        yield
        return
    optimizers, schedulers = _configured(module)
    step = module.training_step

    def with_gradients(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return step(*args, **kwargs)

    replacements = {
        "training_step": with_gradients,
        "optimizers": lambda *args, **kwargs: _one_or_all(optimizers, none=[]),
        "lr_schedulers": lambda: _one_or_all(schedulers, none=None),
        "toggled_optimizer": lambda *args, **kwargs: nullcontext(),
        **dict.fromkeys(("manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer"), _nothing),
    }
    attributes = vars(module)
    saved = {name: attributes[name] for name in replacements if name in attributes}
    values = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    attributes.update(replacements)
    try:
        yield
    finally:
        for name in replacements:
            del attributes[name]
        attributes.update(saved)
        with torch.no_grad():
            for parameter, value in values:
                # Writing needlessly would invalidate graphs that hold the parameter.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)


def _configured(module: "LightningModule") -> tuple[list[IdleOptimizer], list[IdleScheduler]]:
    """Idle versions of what `configure_optimizers` returns, in every form that Lightning accepts."""
    returned: Any = module.configure_optimizers()
    schedulers: list[Any] = []
    if isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(part, list) for part in returned):
        returned, schedulers = returned[0], list(returned[1])
    parts = list(returned) if isinstance(returned, list | tuple) else [returned]
    schedulers += [part["lr_scheduler"] for part in parts if isinstance(part, dict) and "lr_scheduler" in part]
    optimizers = [part["optimizer"] if isinstance(part, dict) else part for part in parts if part is not None]
    plain = [scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler for scheduler in schedulers]
    return [IdleOptimizer(optimizer) for optimizer in optimizers], [IdleScheduler(scheduler) for scheduler in plain]


def _one_or_all(parts: list[Any], none: Any) -> Any:
    # As Lightning hands them out: a single one is not in a list.
    return none if not parts else parts[0] if len(parts) == 1 else parts


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
