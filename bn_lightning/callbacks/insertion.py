"""Insert batch norm into whatever model a Trainer is given."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from bn_lightning.callbacks._compat import (
    CallbackBase,
    LightningModule,
    Trainer,
    averages_weights,
    misconfiguration,
    namespace_of,
    rank_zero_info,
    rank_zero_warn,
)
from bn_lightning.callbacks._example import example_of, muted_logging
from bn_lightning.callbacks._metrics import preserve_metrics
from bn_lightning.errors import NoEffectWarning
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import keep_plan_in_checkpoints
from bn_lightning.surgery.plan import CUSTOM_NORM, InsertionPlan
from bn_lightning.surgery.planning import check_choices, plan_insertion


class BatchNormInsertion(CallbackBase):
    """Puts batch norm before or after the nonlinearities of a model that was written without it.

    The model is traced once, on its `example_input_array` or else on the first training batch (run
    through `training_step` with logging muted), before the optimizers are configured. So the new
    parameters are in the optimizer, checkpoints carry the plan and rebuild the norms in a fresh
    module before they load its weights, and a resumed run continues with them.

    Modules that build their layers in `setup` or `configure_model` get the norms at the end of
    `configure_model`. A module that carries the norms already is left as it is.

    Source: Ioffe & Szegedy 2015, Algorithm 1 and section 3.2.

    Args:
        placement: "before" the nonlinearity, as in the paper, or "after" it.
        norm: "batch", or a factory that makes a norm for a number of channels.
        exclude: fnmatch patterns of sites to leave as they are; the names are those of
            `bn_lightning.plan_insertion(...).table()`.

    Raises:
        UnknownNameError: If the placement or the norm does not exist.
        NoSiteError: During setup, if the model has no nonlinearity or every one is skipped.
        MisconfigurationException: During setup, if there is nothing to trace the model with; at the
            start of fit, if a new parameter is in no optimizer.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks import BatchNormInsertion
        >>> trainer = Trainer(callbacks=[BatchNormInsertion()], logger=False, accelerator="cpu")
    """

    # Of a set-up in progress only; settings are what the instance holds.
    _restore: Callable[[], None] | None = None

    def __init__(
        self,
        *,
        placement: Literal["before", "after"] = "before",
        norm: str | Callable[[int], nn.Module] = "batch",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_choices(placement, norm)
        self.placement = placement
        self.norm = norm
        self.exclude = tuple(exclude)
        self.plan: InsertionPlan | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Insert now, or arrange for it at the end of `configure_model`."""
        self._check_order(trainer, pl_module)
        keep_plan_in_checkpoints(pl_module, norm=None if isinstance(self.norm, str) else self.norm)
        base = namespace_of(trainer).LightningModule
        if any(getattr(type(pl_module), name) is not getattr(base, name) for name in ("setup", "configure_model")):
            self._insert_after_configure_model(trainer, pl_module, stage)
        else:
            self._insert(trainer, pl_module, stage)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check that every new parameter will be trained."""
        self.plan = plan_of(pl_module)
        optimized = {
            id(parameter)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        forgotten = [
            name
            for name, parameter in pl_module.named_parameters()
            if "bn_lightning_norm." in name and parameter.requires_grad and id(parameter) not in optimized
        ]
        if forgotten and optimized:
            raise misconfiguration(
                trainer,
                f"No optimizer holds the inserted parameters {', '.join(forgotten)}. Let configure_optimizers collect "
                "its parameters when it is called (self.parameters()), not from lists made in __init__.",
            )

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to validate with."""
        _warn_of_no_norms(pl_module)

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to test with."""
        _warn_of_no_norms(pl_module)

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to predict with."""
        _warn_of_no_norms(pl_module)

    def _insert_after_configure_model(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        previous = vars(pl_module).get("configure_model")
        original = pl_module.configure_model

        def restore() -> None:
            # A closure left on the module would not pickle, and would stay bound in copies.
            vars(pl_module).pop("configure_model", None)
            if previous is not None:
                vars(pl_module)["configure_model"] = previous
            self._restore = None

        def configure_model() -> None:
            restore()
            original()
            self._insert(trainer, pl_module, stage)

        vars(pl_module)["configure_model"] = configure_model
        self._restore = restore

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave nothing on a module whose set-up failed."""
        if self._restore is not None:
            self._restore()

    def _check_order(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Averaging callbacks copy the model when they are set up, so the norms must be there by then."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        for other in callbacks[: callbacks.index(self)] if plan_of(pl_module) is None else ():
            if averages_weights(other):
                raise misconfiguration(
                    trainer,
                    f"{type(other).__name__} copies the model before BatchNormInsertion can insert norms. Put "
                    f"BatchNormInsertion first: callbacks=[BatchNormInsertion(), {type(other).__name__}(...)].",
                )

    def _insert(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        present = plan_of(pl_module)
        if present is not None:
            name = self.norm if isinstance(self.norm, str) else CUSTOM_NORM
            if (present.placement, present.norm) != (self.placement, name):
                raise misconfiguration(
                    trainer,
                    f"The module already carries norms ({present.norm}, {present.placement}), and this callback was "
                    f"asked for others ({name}, {self.placement}). Take the first out with remove_batch_norm(module), "
                    "or use one BatchNormInsertion only.",
                )
            self.plan = present
            rank_zero_info(
                f"BatchNormInsertion: the module carries {len(present.inserted)} norms already; none was added."
            )
            return
        if stage != "fit" and pl_module.example_input_array is None:
            return  # a checkpoint may bring its plan; if none does, the start of the stage says so
        self.plan = self._plan(trainer, pl_module)
        apply_plan(pl_module, self.plan, norm=None if isinstance(self.norm, str) else self.norm)
        rank_zero_info(_message(self.plan))

    def _plan(self, trainer: "Trainer", pl_module: "LightningModule") -> InsertionPlan:
        if not pl_module.automatic_optimization and pl_module.example_input_array is None:
            raise misconfiguration(
                trainer,
                f"{type(pl_module).__name__} optimizes manually, so its training_step cannot be run to find its "
                "activations before the optimizers exist. Set example_input_array to a batch of inputs; networks that "
                "forward does not reach take their norms by bnl.insert_batch_norm(module.network, (x,)).",
            )
        example = example_of(trainer, pl_module)
        options: dict[str, Any] = {"placement": self.placement, "norm": self.norm, "exclude": self.exclude}
        with muted_logging(pl_module), preserve_metrics(pl_module):
            try:
                return plan_insertion(pl_module, example.args, example.kwargs, entry=example.entry, **options)
            except Exception as error:
                if example.entry == "training_step":
                    error.add_note(
                        "The module has no example_input_array, so training_step ran on the first training batch. "
                        "Set example_input_array to a batch of inputs, and forward is traced instead."
                    )
                raise


def _warn_of_no_norms(module: "LightningModule") -> None:
    if plan_of(module) is None:
        rank_zero_warn(
            f"BatchNormInsertion inserted nothing: outside fit there is no training batch to trace "
            f"{type(module).__name__} with, and no checkpoint brought a plan. Set example_input_array, give the "
            "ckpt_path of a run with inserted norms, or fit first.",
            category=NoEffectWarning,
        )


def _message(plan: InsertionPlan) -> str:
    names = ", ".join(site.name for site in plan.inserted)
    text = f"BatchNormInsertion: {len(plan.inserted)} norms ({plan.norm}, {plan.placement} the nonlinearity) at {names}"
    if plan.skipped:
        text += "; skipped " + "; ".join(f"{site.name} ({site.reason})" for site in plan.skipped)
    return text + "."
