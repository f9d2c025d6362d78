"""What every callback that changes a model before training has in common."""

from typing import TYPE_CHECKING

from bn_lightning.callbacks._built import OnceBuilt
from bn_lightning.callbacks._compat import CallbackBase, misconfiguration

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class ModelChange(CallbackBase):
    """Changes the module of a fit once its layers are built and before its optimizers are configured.

    Subclasses say what in `change`. Several act in the order of the Trainer's callbacks, and so does
    `BatchNormInsertion`: norms are planned on what the callbacks before it have made of the model.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> class Halved(ModelChange):
        ...     def change(self, trainer, module):
        ...         module.layer.weight.data.mul_(0.5)
        >>> module = BoringModel()
        >>> before = module.layer.weight.detach().clone()
        >>> Halved().setup(None, module, "validate")  # fit alone changes the model
        >>> bool((module.layer.weight == before).all())
        True
    """

    _waiting: OnceBuilt | None = None
    _made: tuple[str, ...] = ()

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Change the module in place.

        Args:
            trainer: The Trainer that is setting up.
            module: Its LightningModule, with all its layers.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say in `change` what it changes.")

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Change the module now, or when its own `setup` and `configure_model` have run."""
        if stage != "fit":
            return

        def act() -> None:
            known = {id(parameter) for parameter in pl_module.parameters()}
            self.change(trainer, pl_module)
            made = [name for name, parameter in pl_module.named_parameters() if id(parameter) not in known]
            self._made = tuple(made)

        self._waiting = OnceBuilt(trainer, pl_module, act)
        self._waiting.arm()

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse optimizers that would leave new parameters as they are."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        parameters = dict(pl_module.named_parameters())
        forgotten = [
            name
            for name in self._made
            if name in parameters and parameters[name].requires_grad and id(parameters[name]) not in held
        ]
        if held and forgotten:
            raise misconfiguration(
                trainer,
                f"No optimizer holds {', '.join(forgotten)}, which {type(self).__name__} made. Let "
                "configure_optimizers collect its parameters when it is called (self.parameters()), not from lists "
                "made in __init__.",
            )

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave nothing on a module whose set-up failed."""
        if self._waiting is not None:
            self._waiting.restore()

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Let the set-up's objects go, so that the callback pickles."""
        self._waiting = None
