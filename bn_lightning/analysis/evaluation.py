"""Run a module's validation step on batches of one's own choice, and give back what it logs."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bn_lightning.callbacks._compat import misconfiguration
from bn_lightning.callbacks._loader import loader_of_our_own, to_training_device
from bn_lightning.callbacks._no_trace import no_trace
from bn_lightning.probes.objective_loss import batch_samples
from bn_lightning.surgery.sandbox import sandbox

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


def evaluate_batches(trainer: "Trainer", module: "LightningModule", batches: Iterable[Any]) -> dict[str, float]:
    """What `validation_step` logs of some batches, as Lightning would report it.

    The module runs in evaluation mode, with its hooks at the start and the end of a validation epoch. Its metrics,
    buffers, modes, plain attributes, the random state and what Lightning has logged so far are as before afterwards.
    A number is averaged over batches by their sizes, and a torchmetrics metric starts afresh and is computed at
    the end. What is logged on step and on epoch is there as `<name>_epoch` too. What is reduced otherwise (`reduce_fx`)
    is left out.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        batches: Batches as a loader yields them; they are moved to the device.

    Returns:
        Value by the name it was logged under.
    """
    logged = _Logged()
    # Weights and buffers made inside inference mode could not be trained on.
    with torch.inference_mode(False), torch.no_grad(), no_trace(module), sandbox(module):
        module.eval()
        for part in module.modules():
            if isinstance(part, Metric):
                part.reset()
        vars(module).update(log=logged.log, log_dict=logged.log_dict)
        module.on_validation_epoch_start()
        for index, batch in enumerate(batches):
            moved = to_training_device(trainer, module, batch)
            logged.samples = batch_samples(moved)
            with trainer.precision_plugin.val_step_context():
                module.validation_step(*_arguments(module, moved, index))
        logged.samples = 1
        module.on_validation_epoch_end()
        return logged.values()


def validation_batches(trainer: "Trainer") -> Iterator[Any]:
    """The batches of one validation, from a loader of our own.

    Args:
        trainer: A Trainer that is fitting, with validation.

    Returns:
        As many as a validation reads, neither converted nor moved.

    Raises:
        MisconfigurationException: Of the Trainer's namespace, if there are several validation loaders, or one that
            cannot be read a second time.
    """
    remedy = "Evaluate from a data set that can be read twice."
    loader = loader_of_our_own(trainer, trainer.val_dataloaders, "sequential", remedy=remedy)
    if len(loader.flattened) != 1:
        raise misconfiguration(
            trainer,
            f"One validation is repeated with other statistics here, and these data have {len(loader.flattened)} "
            "validation loaders. Give data whose val_dataloader returns a single one.",
        )
    return _read(loader, trainer.num_val_batches[0])


def _read(loader: Any, limit: float) -> Iterator[Any]:
    for index, (batch, _, _) in enumerate(loader):
        if index >= limit:
            return
        yield batch


def _arguments(module: Any, batch: Any, index: int) -> tuple[Any, ...]:
    parameters = inspect.signature(module.validation_step).parameters.values()
    takes_index = len(parameters) > 1 or any(part.kind is part.VAR_POSITIONAL for part in parameters)
    return (batch, index) if takes_index else (batch,)


# The order in which Lightning takes them after name and value.
_OPTIONS = ("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx")


class _Logged:
    """In place of a module's `log` and `log_dict`: sums of numbers and the metrics themselves."""

    def __init__(self) -> None:
        self.samples = 1
        self._sums: dict[str, tuple[float, float]] = {}
        self._metrics: dict[str, Metric] = {}
        self._forked: set[str] = set()

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Take one value."""
        options.update(zip(_OPTIONS, args, strict=False))
        if options.get("on_step") and options.get("on_epoch") is not False:  # None is True in validation
            self._forked.add(name)
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        if options.get("reduce_fx", "mean") not in ("mean", torch.mean):
            return
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        weight = float(options.get("batch_size") or self.samples)
        total, weights = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = total + weight * number, weights + weight

    def log_dict(self, values: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """Take several values."""
        for name, value in values.items():
            self.log(name, value, *args, **options)

    def values(self) -> dict[str, float]:
        """Means of numbers, and what the metrics compute."""
        found = {name: total / weights if weights else math.nan for name, (total, weights) in self._sums.items()}
        found |= {name: float(metric.compute()) for name, metric in self._metrics.items()}
        # Lightning monitors these under both names.
        return found | {f"{name}_epoch": value for name, value in found.items() if name in self._forked}
