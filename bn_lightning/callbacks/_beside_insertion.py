"""What insertion must agree on with the optimizers and with Lightning's other callbacks."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bn_lightning.callbacks._compat import LightningModule, Trainer, averages_weights, misconfiguration
from bn_lightning.surgery.tracing.graph import CHILD_NAME


def check_order(trainer: "Trainer", insertion: object) -> None:
    """Refuse averaging callbacks before insertion: they copy the model when they are set up, without norms.

    Args:
        trainer: The Trainer that is setting up.
        insertion: The insertion callback, which has inserted nothing yet.

    Raises:
        MisconfigurationException: If an averaging callback comes first.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    for other in callbacks[: callbacks.index(insertion)]:
        if averages_weights(other):
            raise misconfiguration(
                trainer,
                f"{type(other).__name__} copies the model before BatchNormInsertion can insert norms. Put "
                f"BatchNormInsertion first: callbacks=[BatchNormInsertion(), {type(other).__name__}(...)].",
            )


def copy_again(trainer: "Trainer", module: "LightningModule", stage: str) -> None:
    """Let averaging callbacks copy a module whose layers and norms came after their set-up.

    Their copy lacks what `setup` and `configure_model` build, and they pair its parameters with the module's
    one by one, so that from the first missing one on wrong pairs would be averaged.

    Args:
        trainer: The Trainer that is setting up.
        module: The module with its norms.
        stage: The stage that is being set up.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined] # set by a connector
        if averages_weights(other):
            other.setup(trainer, module, stage)


def check_optimizers(trainer: "Trainer", module: "LightningModule") -> None:
    """Refuse optimizers that hold a layer's parameters, and not those of the norm inserted at that layer.

    Where a finetuning callback runs, the norms of layers that no optimizer holds yet are left to it: it
    hands both over together.

    Args:
        trainer: A Trainer whose optimizers are configured.
        module: The module with its norms.

    Raises:
        MisconfigurationException: If a parameter of an inserted norm is trainable and in no optimizer.
    """
    held = {
        id(parameter)
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    if not held:
        return
    finetuning = any(_finetunes(other) for other in trainer.callbacks)  # type: ignore[attr-defined] # see above
    forgotten = []
    for path, host in module.named_modules():
        norms = getattr(host, CHILD_NAME, None)
        if not isinstance(norms, nn.Module) or (finetuning and held.isdisjoint(_near(module, path))):
            continue
        forgotten += [
            f"{path}.{CHILD_NAME}.{name}".removeprefix(".")
            for name, parameter in norms.named_parameters()
            if parameter.requires_grad and id(parameter) not in held
        ]
    if forgotten:
        raise misconfiguration(
            trainer,
            f"No optimizer holds the inserted parameters {', '.join(forgotten)}. Let configure_optimizers collect "
            "its parameters when it is called (self.parameters()), not from lists made in __init__.",
        )


def check_frozen(trainer: "Trainer", module: "LightningModule") -> None:
    """Refuse norms that were frozen before they saw a batch: they would evaluate with mean 0 and variance 1.

    Lightning's `BaseFinetuning.freeze(..., train_bn=False)` turns the running statistics of a norm off, in
    training mode only. A pretrained norm has statistics by then, one that was just inserted has none.

    Args:
        trainer: The Trainer, about to fit.
        module: The module with its norms.

    Raises:
        MisconfigurationException: If such a norm was inserted.
    """
    frozen = [
        path
        for path, norm in module.named_modules()
        if f"{CHILD_NAME}." in path
        and isinstance(norm, _BatchNorm)
        and not norm.track_running_stats
        and norm.running_mean is not None
        and norm.num_batches_tracked is not None
        and int(norm.num_batches_tracked) == 0
    ]
    if frozen:
        raise misconfiguration(
            trainer,
            f"The inserted norms {', '.join(frozen)} were frozen before they saw a batch, so evaluation would use mean "
            "0 and variance 1. Let the finetuning callback call freeze(..., train_bn=True), which keeps norms in "
            "training, or leave the frozen layers out: BatchNormInsertion(exclude=[...]).",
        )


def _near(module: nn.Module, path: str) -> set[int]:
    """Which parameters belong together with the norms that hang at `path`: the layer's, or its neighbours'."""
    while True:
        host = module.get_submodule(path)
        own = {id(parameter) for name, parameter in host.named_parameters() if f"{CHILD_NAME}." not in name}
        if own or not path:  # an activation module has none itself
            return own
        path = path.rpartition(".")[0]


def _finetunes(callback: object) -> bool:
    return "BaseFinetuning" in {kind.__name__ for kind in type(callback).__mro__}
