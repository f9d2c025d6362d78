"""Where batch norm would go into a LightningModule, without training it."""

import warnings
from typing import Any

from bn_lightning.analysis.training import namespace_of_module, quiet_lightning, recorded_warnings
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.errors import NoSiteError
from bn_lightning.surgery.plan import InsertionPlan


def plan_of_module(module: Any, data: Any = None, **options: Any) -> InsertionPlan:
    """Let a Trainer set a module up, insert as it would for training, and stop before the first step.

    The module is changed: it holds the norms afterwards, unless every site is skipped.

    Args:
        module: A LightningModule.
        data: A LightningDataModule; not needed if the module has an example_input_array.
        **options: Those of `BatchNormInsertion`.

    Returns:
        The plan.

    Raises:
        ValueError: If there is nothing to run the module on.
    """
    if data is None and module.example_input_array is None:
        raise ValueError(
            f"{type(module).__name__} has no example_input_array, so there is nothing to trace it with. Set it in the "
            "module to a batch of inputs, or name the data too (--data)."
        )
    insertion = BatchNormInsertion(**options)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    with recorded_warnings() as caught, quiet_lightning():
        trainer = namespace_of_module(module).Trainer(max_steps=0, callbacks=[insertion], **settings, **silent)
        try:
            if data is None:
                trainer.fit(module, train_dataloaders=[module.example_input_array])
            else:
                trainer.fit(module, datamodule=data)
        except NoSiteError:
            # The plan of a model whose every site is skipped says why, which is what was asked for.
            if insertion.plan is None:
                raise
    for warning in caught:
        # Lightning's own advice is about a training that does not take place.
        if warning.category.__module__.startswith("bn_lightning."):
            warnings.warn(warning.message, warning.category, stacklevel=2)
    if insertion.plan is None:
        raise ValueError(f"No plan was made for {type(module).__name__}.")
    return insertion.plan
