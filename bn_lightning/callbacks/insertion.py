"""Insert batch norm into whatever model a Trainer is given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from bn_lightning.callbacks._beside_insertion import check_frozen, check_optimizers, check_order, copy_again
from bn_lightning.callbacks._built import OnceBuilt
from bn_lightning.callbacks._compat import (
    CallbackBase,
    LightningModule,
    Trainer,
    misconfiguration,
    rank_zero_info,
    rank_zero_warn,
)
from bn_lightning.callbacks._example import entry_of
from bn_lightning.callbacks._insertion_run import calibrate_identity, refuse_sharded, trace_plan
from bn_lightning.errors import NoEffectWarning, UnknownNameError
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.checkpoint import keep_plan_in_checkpoints
from bn_lightning.surgery.plan import CUSTOM_NORM, NORMS, InsertionPlan
from bn_lightning.surgery.planning import check_choices


class BatchNormInsertion(CallbackBase):
    """Puts batch norm before or after the nonlinearities of a model that was written without it.

    The model is traced once, on its `example_input_array` or else on the first training batch (run
    through `training_step` with logging muted), before the optimizers are configured. So the new
    parameters are in the optimizer, checkpoints carry the plan and rebuild the norms in a fresh
    module before they load its weights, and a resumed run continues with them.

    Modules that build their layers in `setup` or `configure_model` get the norms when these have run.
    A `training_step` that optimizes manually is run with idle optimizers, so a step that trains several
    networks shows them all; where a network with activations was not reached, a warning names it.
    A module that carries the norms already is left as it is.

    Put it before callbacks that average weights. Finetuning callbacks go before or after it.

    Source: Ioffe & Szegedy 2015, Algorithm 1 and section 3.2.

    Args:
        placement: "before" the nonlinearity, as in the paper, or "after" it.
        norm: "batch" or another name of `bn_lightning.plan_insertion`, or a factory that makes a norm for a number
            of channels.
        norm_options: Arguments of a named norm, such as ``{"momentum": 0.01, "affine": False}``.
        site: "nonlinearity": on what a nonlinearity receives, after residual adds. "affine": on the output of
            each affine layer that leads to one.
        include: fnmatch patterns of sites, or types of modules, to which insertion is limited; None for all. The
            names are those of `bn_lightning.plan_insertion(...).table()`.
        exclude: Patterns or types of sites to leave as they are.
        inputs: Whether the network's inputs get a norm too.
        existing: Names of the norms of the model next to which a site counts as normalised already.
        bias: "freeze" the biases that the subtracted mean makes redundant, or "keep" them trainable.
        entry: What is traced: "forward" on `example_input_array`, or "training_step" on training batches. None
            takes the first where there is such an array and `num_examples` is 1.
        num_examples: How many training batches to trace, where one does not take every path.
        init: "standard": scale 1 and shift 0. "identity": scale and shift that undo the normalisation by the
            statistics of the first training batches, so that a pretrained network keeps its function. Not on a resume.
        num_init_batches: From how many training batches "identity" takes its statistics.

    Raises:
        UnknownNameError: If the placement, the norm, its option or another choice does not exist.
        TypeError: If `include`, `exclude` or `existing` is one string or type instead of several.
        ValueError: If `num_examples` or `num_init_batches` is not positive, or `entry="forward"` is to have several
            examples.
        NoSiteError: During setup, if the model has no nonlinearity or every one is skipped.
        MisconfigurationException: During setup, if there is nothing to trace the model with, if callbacks are in
            the wrong order, or if the layers were sharded before; at the start of fit, if a new parameter is in no
            optimizer.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from bn_lightning.callbacks import BatchNormInsertion
        >>> trainer = Trainer(callbacks=[BatchNormInsertion()], logger=False, accelerator="cpu")
    """

    # Of a set-up in progress only; settings are what the instance holds.
    _waiting: OnceBuilt | None = None
    _is_new = False

    def __init__(
        self,
        *,
        placement: Literal["before", "after"] = "before",
        norm: Callable[[int], nn.Module] | str = "batch",
        norm_options: Mapping[str, Any] | None = None,
        site: Literal["nonlinearity", "affine"] = "nonlinearity",
        include: Sequence[type[nn.Module] | str] | None = None,
        exclude: Sequence[type[nn.Module] | str] = (),
        inputs: bool = False,
        existing: Sequence[str] = NORMS,
        bias: Literal["freeze", "keep"] = "freeze",
        entry: Literal["forward", "training_step"] | None = None,
        num_examples: int = 1,
        init: Literal["standard", "identity"] = "standard",
        num_init_batches: int = 100,
    ) -> None:
        super().__init__()
        for option, given in (("include", include), ("exclude", exclude), ("existing", existing)):
            if isinstance(given, str | type):
                raise TypeError(f"{option} is a list of several, such as [{given!r}]; got {given!r} itself.")
        check_choices(placement, norm, norm_options, site=site, existing=existing, bias=bias)
        if min(num_examples, num_init_batches) < 1:
            raise ValueError(
                f"num_examples={num_examples} and num_init_batches={num_init_batches} are numbers of batches; give "
                "positive ones."
            )
        if entry == "forward" and num_examples > 1:
            raise ValueError(
                f"num_examples={num_examples} asks for training batches, and entry='forward' runs example_input_array "
                "alone. Use entry='training_step', or one example."
            )
        for option, given, known in (
            ("entry", entry, (None, "forward", "training_step")),
            ("init", init, ("standard", "identity")),
        ):
            if given not in known:
                names = " or ".join(repr(name) for name in known if name)
                raise UnknownNameError(f"{option} is {names}, not {given!r}.")
        self.placement = placement
        self.norm = norm
        self.norm_options = dict(norm_options or {})
        self.site = site
        self.include = None if include is None else tuple(include)
        self.exclude = tuple(exclude)
        self.inputs = inputs
        self.existing = tuple(existing)
        self.bias = bias
        self.entry = entry
        self.num_examples = num_examples
        self.init = init
        self.num_init_batches = num_init_batches
        self.plan: InsertionPlan | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Insert now, or arrange for it when the module has built its layers."""
        if plan_of(pl_module) is None:
            check_order(trainer, self)
        keep_plan_in_checkpoints(pl_module, norm=self._factory)

        def insert() -> None:
            self._insert(trainer, pl_module, stage)
            if waiting.waited:
                copy_again(trainer, pl_module, stage)

        waiting = self._waiting = OnceBuilt(trainer, pl_module, insert)
        waiting.arm()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check that every new parameter will be trained, and let new norms start as the identity if asked to."""
        self.plan = plan_of(pl_module)
        check_frozen(trainer, pl_module)
        check_optimizers(trainer, pl_module)
        # Not before: only now is it known whether a checkpoint brought statistics, and the module is on its device.
        if self.init == "identity" and self._is_new and trainer.ckpt_path is None:
            calibrate_identity(trainer, pl_module, self.num_init_batches)
            copy_again(trainer, pl_module, "fit")
        self._is_new = False

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to validate with."""
        _warn_of_no_norms(pl_module)

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to test with."""
        _warn_of_no_norms(pl_module)

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Say so if there is no norm to predict with."""
        _warn_of_no_norms(pl_module)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave nothing on a module whose set-up failed."""
        if self._waiting is not None:
            self._waiting.restore()

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Let the set-up's objects go, so that the callback pickles."""
        self._waiting = None

    @property
    def _factory(self) -> Callable[[int], nn.Module] | None:
        return None if isinstance(self.norm, str) else self.norm

    def _insert(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        present = plan_of(pl_module)
        if present is not None:
            self._check_same(trainer, present)
            self.plan = present
            rank_zero_info(
                f"BatchNormInsertion: the module carries {len(present.inserted)} norms already; none was added."
            )
            return
        entry = entry_of(pl_module, self.entry, num_examples=self.num_examples)
        # Training batches are at hand in fit only; elsewhere a checkpoint may bring its plan and statistics.
        if stage != "fit" and (entry != "forward" or pl_module.example_input_array is None or self.init == "identity"):
            return
        refuse_sharded(trainer, pl_module)
        options = {name: getattr(self, name) for name in _PLAN_OPTIONS}
        self.plan = trace_plan(trainer, pl_module, entry=self.entry, num_examples=self.num_examples, options=options)
        apply_plan(pl_module, self.plan, norm=self._factory)
        rank_zero_info(_message(self.plan))
        self._is_new = True

    def _check_same(self, trainer: "Trainer", present: InsertionPlan) -> None:
        norm = self.norm if isinstance(self.norm, str) else CUSTOM_NORM
        if (present.placement, present.norm, dict(present.norm_options)) != (self.placement, norm, self.norm_options):
            raise misconfiguration(
                trainer,
                f"The module already carries norms ({_kind(present.norm, present.placement, present.norm_options)}), "
                f"and this callback was asked for others ({_kind(norm, self.placement, self.norm_options)}). Take the "
                "first out with remove_batch_norm(module), or use one BatchNormInsertion only.",
            )


_PLAN_OPTIONS = ("placement", "norm", "norm_options", "site", "include", "exclude", "inputs", "existing", "bias")


def _warn_of_no_norms(module: "LightningModule") -> None:
    if plan_of(module) is None:
        rank_zero_warn(
            f"BatchNormInsertion inserted nothing: outside fit there is no training batch to trace "
            f"{type(module).__name__} with, and no checkpoint brought a plan. Set example_input_array, give the "
            "ckpt_path of a run with inserted norms, or fit first.",
            category=NoEffectWarning,
        )


def _kind(norm: str, placement: str, options: Mapping[str, Any]) -> str:
    return ", ".join((norm, placement, *(f"{name}={value}" for name, value in options.items())))


def _message(plan: InsertionPlan) -> str:
    names = ", ".join(site.name for site in plan.inserted)
    text = f"BatchNormInsertion: {len(plan.inserted)} norms ({plan.norm}, {plan.placement} the nonlinearity) at {names}"
    if plan.skipped:
        text += "; skipped " + "; ".join(f"{site.name} ({site.reason})" for site in plan.skipped)
    return text + "."
