"""A base class with which a LightningModule reads and writes inserted norms by itself."""

import inspect
from typing import Any, ClassVar

from torch import nn

from bn_lightning.surgery.checkpoint import match_plan, write_plan
from bn_lightning.surgery.plan import NormFactory


class InsertedNormsMixin:
    """Lets a LightningModule carry its inserted norms through checkpoints without any callback.

    With it `MyModule.load_from_checkpoint(path)`, and `Trainer.test(module, ckpt_path=path)` without
    `BatchNormInsertion`, rebuild the norms from the checkpoint's plan before the weights are loaded;
    plain classes need `bn_lightning.load_from_checkpoint`. A module without norms is left as it is.

    Put it before the LightningModule among the bases, and let an `on_save_checkpoint` or
    `on_load_checkpoint` of your own call the one of `super()`.

    Layers must exist by then: Lightning's `load_from_checkpoint` calls `configure_model`, but not `setup`.

    Attributes:
        inserted_norm: The norm factory that the norms are made with, if it is one; checkpoints cannot hold it.

    Raises:
        TypeError: When a subclass is defined that has the LightningModule before this class.
        PlanMismatchError: When a checkpoint is loaded whose norms do not fit the module.

    Example:
        >>> import torch
        >>> from pytorch_lightning import LightningModule
        >>> from bn_lightning import insert_batch_norm
        >>> class Net(InsertedNormsMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        ...
        ...     def forward(self, x):
        ...         return self.layers(x)
        >>> trained, fresh, checkpoint = Net(), Net(), {}
        >>> plan = insert_batch_norm(trained, (torch.randn(16, 8),))
        >>> trained.on_save_checkpoint(checkpoint)
        >>> fresh.on_load_checkpoint(checkpoint)
        >>> fresh.load_state_dict(trained.state_dict())
        <All keys matched successfully>
    """

    inserted_norm: ClassVar[NormFactory | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Lightning's own hooks do not call super, so behind them these would never run.
        if "LightningModule" in (base.__name__ for base in cls.__mro__[: cls.__mro__.index(InsertedNormsMixin)]):
            raise TypeError(
                f"{cls.__name__} has LightningModule before InsertedNormsMixin among its bases, so its checkpoints "
                f"would know nothing of inserted norms. Put the mixin first: class {cls.__name__}(InsertedNormsMixin, "
                "...)."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the plan into the checkpoint; called by Lightning, with `save_weights_only` too.

        Args:
            checkpoint: The dictionary that will be saved; changed in place.
        """
        assert isinstance(self, nn.Module)  # noqa: S101 - what this class is mixed into
        write_plan(self, checkpoint)
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc] # of the LightningModule

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Carry out the checkpoint's plan; called by Lightning before the weights are loaded.

        Args:
            checkpoint: The loaded dictionary.

        Raises:
            PlanMismatchError: If the checkpoint's norms do not fit the module, or one of the two has none.
        """
        assert isinstance(self, nn.Module)  # noqa: S101 - what this class is mixed into
        # Read as it stands in the class: a function looked up on an instance would come as its method.
        norm: Any = inspect.getattr_static(type(self), "inserted_norm")
        match_plan(self, checkpoint, norm=norm.__func__ if isinstance(norm, staticmethod) else norm)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc] # of the LightningModule
