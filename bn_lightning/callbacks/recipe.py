"""Change how a network is trained as the paper does once it has batch norm."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from bn_lightning.callbacks._beside_insertion import copy_again
from bn_lightning.callbacks._compat import (
    CallbackBase,
    LightningModule,
    Trainer,
    misconfiguration,
    rank_zero_info,
    rank_zero_warn,
)
from bn_lightning.callbacks._recipe_calls import FunctionalCalls, is_compiled, watch_training_step
from bn_lightning.callbacks._recipe_dropout import without_dropout
from bn_lightning.callbacks._recipe_loader import on_training_loaders, shuffle
from bn_lightning.callbacks._recipe_optimizers import change_optimizers
from bn_lightning.callbacks._recipe_report import RecipeChange, RecipeReport, nothing_found
from bn_lightning.errors import NoEffectWarning
from bn_lightning.surgery.local_response_norm import (
    MARK,
    follow_state_dicts,
    remove_local_response_norm,
    restore_local_response_norm,
)


class BatchNormRecipe(CallbackBase):
    """Trains a network that has batch norm as its authors do, without a change to the module.

    Source: Ioffe & Szegedy 2015, section 4.2.1 ("Accelerating BN Networks"). Each item can be switched off:

    | item | the paper | what is changed, and named in the report |
    | --- | --- | --- |
    | `learning_rate` | "Increase learning rate" | every rate of every optimizer, and what its schedulers start from |
    | `remove_dropout` | "Remove Dropout" | `p` of each `nn.Dropout` kind, `dropout` of RNNs and attention: 0 in fit |
    | `divide_weight_decay` | "Reduce the L2 weight regularization" by 5 | `weight_decay` of each parameter group |
    | `decay_faster` | "Accelerate the learning rate decay" 6 times | each scheduler takes 6 steps at a time |
    | `remove_local_response_norm` | "Remove Local Response Normalization" | such modules pass their input on |
    | `shuffle` | "Shuffle training examples more thoroughly" | training loaders that read their data in order |
    | `reduce_augmentation` | "Reduce the photometric distortions" | what your function changes |

    What it cannot do, it says: functional dropout and local response normalization are looked for in the first
    training step (unless something is compiled) and named with their lines. An L2 term that the loss adds itself and
    a rate that the module sets in its steps are not seen; nor are parameter groups that are added later. In AdamW the
    decay per step is ``lr·weight_decay``: five times the rate and a fifth of the decay leave it as it was.

    Schedules pass faster from their start, warm-ups included: after n steps the rate is that of step 6·n, times
    `learning_rate`. Past the rate with which your run would end only steps that lower it are taken, so a cosine stays
    at its minimum. `ReduceLROnPlateau` gets a sixth of its patience and cooldown, rounded up.

    Dropout, samplers and schedulers are given back after fit and when it fails. Local response norms stay
    removed once trained without, because they act in evaluation too: each one's `bn_lightning_removed` in the state
    dict lets a Trainer with this callback or `BatchNormInsertion`, `bn_lightning.load_from_checkpoint` and the commands
    that read checkpoints remove them before the weights are loaded, and a plain model refuse them;
    `bn_lightning.surgery.local_response_norm.remove_local_response_norm(model)` prepares one by hand. A resumed run
    continues with the rates and the decay of its checkpoint, which are not changed twice; if the checkpoint's run
    had no recipe, they are changed at that point. A learning-rate finder searches before its rate is multiplied.

    Order does not matter to `BatchNormInsertion`, whose norms' parameters are treated like the others.

    Args:
        learning_rate: What to multiply the initial learning rates by (5 and 30 in the paper), or None.
        remove_dropout: Whether to train without the dropout of modules.
        divide_weight_decay: What to divide the weight decay by, or None.
        decay_faster: How many times as fast schedules pass, a whole number above 1, or None.
        remove_local_response_norm: Whether to remove `nn.LocalResponseNorm` and `nn.CrossMapLRN2d`.
        shuffle: Whether to shuffle each epoch.
        reduce_augmentation: Gets the LightningDataModule after its setup, or else the training loaders each time they
            are made, and changes their transforms in place. What it returns, if anything, stands in the report.

    Attributes:
        report: What was changed, from the start of training on, as a `RecipeReport` with a `table()`; else None.

    Raises:
        ValueError: If a number is not above 0, or `decay_faster` not a whole number above 1.
        TypeError: If `reduce_augmentation` is not a function.
        MisconfigurationException: During setup, if there are two recipes; at the start of training, if the
            checkpoint was trained with another recipe.

    Warns:
        NoEffectWarning: If items that are switched on found nothing to change, or functional calls were left.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks import BatchNormInsertion, BatchNormRecipe
        >>> callbacks = [BatchNormInsertion(), BatchNormRecipe(learning_rate=30.0, shuffle=False)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, accelerator="cpu")
    """

    report: RecipeReport | None = None
    # Of a fit in progress only; settings are what the instance holds.
    _calls: FunctionalCalls | None = None
    _have_loaders: Callable[[], None] | None = None
    _restored: dict[str, Any] | None = None
    _changed_optimizers = False
    _trained = False

    def __init__(
        self,
        *,
        learning_rate: float | None = 5.0,
        remove_dropout: bool = True,
        divide_weight_decay: float | None = 5.0,
        decay_faster: int | None = 6,
        remove_local_response_norm: bool = True,
        shuffle: bool = True,
        reduce_augmentation: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        for name, factor in (("learning_rate", learning_rate), ("divide_weight_decay", divide_weight_decay)):
            if factor is not None and not factor > 0:
                raise ValueError(f"{name} is a factor above 0, or None to leave it; got {factor}.")
        if decay_faster is not None and (decay_faster != int(decay_faster) or decay_faster < 2):
            raise ValueError(
                f"decay_faster is how many steps schedules take for one, a whole number above 1, or None; got "
                f"{decay_faster}."
            )
        if reduce_augmentation is not None and not callable(reduce_augmentation):
            raise TypeError(
                "reduce_augmentation is a function of the data module or the training loaders; got a "
                f"{type(reduce_augmentation).__name__}."
            )
        self.learning_rate = learning_rate
        self.remove_dropout = remove_dropout
        self.divide_weight_decay = divide_weight_decay
        self.decay_faster = None if decay_faster is None else int(decay_faster)
        self.remove_local_response_norm = remove_local_response_norm
        self.shuffle = shuffle
        self.reduce_augmentation = reduce_augmentation
        self._changes: list[RecipeChange] = []
        self._undo, self._undo_loaders = ExitStack(), ExitStack()

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Prepare the data, and follow checkpoints that were written without local response norms."""
        others = [callback for callback in trainer.callbacks if isinstance(callback, BatchNormRecipe)]  # type: ignore[attr-defined] # set by a connector
        if len(others) > 1:
            raise misconfiguration(
                trainer,
                f"There are {len(others)} BatchNormRecipe callbacks, which would change the same things. Use one.",
            )
        self._close()
        self._undo.callback(follow_state_dicts(pl_module).remove)
        if stage != "fit":
            return
        self.report, self._restored, self._changed_optimizers, self._trained = None, None, False, False
        self._changes = []
        data_module: Any = trainer.datamodule  # type: ignore[attr-defined] # set by a connector
        if data_module is not None:
            self._reduce(data_module)
        if self.shuffle or (self.reduce_augmentation is not None and data_module is None):
            self._undo.push(self._undo_loaders)
            self._have_loaders = on_training_loaders(
                trainer, lambda loaders: self._prepare(trainer, loaders), undo=self._undo.callback
            )

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Change the layers, which are all there now and have their weights."""
        if self.remove_dropout:
            self._changes += without_dropout(pl_module, self._undo.callback)
        if self.remove_local_response_norm and (removed := remove_local_response_norm(pl_module)):
            self._changes += [
                RecipeChange("remove_local_response_norm", name, "acts", "passes its input on") for name in removed
            ]
            copy_again(trainer, pl_module, "fit")

            def untouched() -> None:
                # Weights that were trained, or came from a checkpoint, without these norms must not be run with them.
                if not self._trained and trainer.ckpt_path is None:
                    restore_local_response_norm(pl_module)

            self._undo.callback(untouched)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Change the optimizers, which a checkpoint has been restored into by now, and report."""
        if self._restored is not None and self._restored != self._numbers:
            raise misconfiguration(
                trainer,
                f"The checkpoint was trained with BatchNormRecipe({_arguments(self._restored)}), whose rates and decay "
                f"it holds, and this one asks for {_arguments(self._numbers)}. Give the same numbers, or start from "
                "the checkpoint's weights alone.",
            )
        self._changes += change_optimizers(
            trainer, pl_module, **self._numbers, undo=self._undo.callback, resumed=self._restored is not None
        )
        self._changed_optimizers = True
        if self._have_loaders is not None and not trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined] # set by a connector
            self._have_loaders()
        if (self.remove_dropout or self.remove_local_response_norm) and not is_compiled(pl_module):
            options = {"dropout": self.remove_dropout, "local_response_norm": self.remove_local_response_norm}
            self._calls = watch_training_step(pl_module, undo=self._undo.callback, **options)
        asked = [name for name in ITEMS if getattr(self, name) not in (None, False)]
        found = {change.item for change in self._changes if not change.left}
        missing = tuple(name for name in asked if name not in found and not self._is_done(name, pl_module))
        self.report = RecipeReport(tuple(self._changes), missing)
        if self._changes:
            rank_zero_info(f"BatchNormRecipe:\n{self.report}")
        if missing:
            rank_zero_warn(nothing_found(missing, self.report), category=NoEffectWarning)

    def on_train_batch_start(self, trainer: "Trainer", pl_module: "LightningModule", *args: Any, **kwargs: Any) -> None:
        """Note that the weights are no longer those of before."""
        self._trained = True

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", *args: Any, **kwargs: Any) -> None:
        """Name the functional calls of the first step."""
        if self._calls is None or self.report is None:
            return
        calls, self._calls = self._calls, None
        calls.stop()
        if calls.found:
            left = tuple(calls.found.values())
            self.report = replace(self.report, changes=(*self.report.changes, *left))
            rank_zero_warn(
                "BatchNormRecipe cannot remove functional calls, whose settings stand in the code around them, and "
                f"left {'; '.join(f'{change.name} ({change.before})' for change in left)}. Set their probability to 0 "
                "in the module, or use nn.Dropout and nn.LocalResponseNorm modules there.",
                category=NoEffectWarning,
            )

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Give back what was changed for the fit."""
        self._close()

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Give back what was changed for the fit."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """The numbers that the optimizers' states were changed with, once they were."""
        return dict(self._numbers) if self._changed_optimizers else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take note that the optimizers' states of the checkpoint are changed already."""
        self._restored = dict(state_dict)

    @property
    def _numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("learning_rate", "divide_weight_decay", "decay_faster")}

    def _close(self) -> None:
        self._calls = self._have_loaders = None
        self._undo.close()

    def _prepare(self, trainer: "Trainer", loaders: Any) -> None:
        """Act on loaders that were just made; they may be made again later."""
        if trainer.datamodule is None:  # type: ignore[attr-defined] # set by a connector
            self._reduce(loaders)
        if self.shuffle:
            self._changes = [change for change in self._changes if change.item != "shuffle"]
            # Those made before, for insertion to trace with or for the last epoch, are done with.
            self._undo_loaders.close()
            self._changes += shuffle(trainer, loaders, undo=self._undo_loaders.callback)

    def _reduce(self, data: Any) -> None:
        if self.reduce_augmentation is None:
            return
        said = self.reduce_augmentation(data)
        name = getattr(self.reduce_augmentation, "__qualname__", type(self.reduce_augmentation).__name__)
        change = RecipeChange("reduce_augmentation", type(data).__name__, f"before {name}", str(said or "after it"))
        self._changes = [other for other in self._changes if other.item != change.item] + [change]

    def _is_done(self, item: str, module: nn.Module) -> bool:
        """Whether a checkpoint or an earlier fit brought the change of an item."""
        if item in ("learning_rate", "divide_weight_decay"):
            return self._restored is not None
        if item == "remove_local_response_norm":
            return any(name.endswith(MARK) for name, _ in module.named_buffers())
        # Loaders that shuffle need no change, and those that cannot are in the report with the reason.
        return item == "shuffle" and not any(change.item == item for change in self._changes)


ITEMS = (
    "learning_rate",
    "remove_dropout",
    "divide_weight_decay",
    "decay_faster",
    "remove_local_response_norm",
    "shuffle",
    "reduce_augmentation",
)


def _arguments(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in numbers.items())
