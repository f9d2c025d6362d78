"""Give the norms of a checkpoint population statistics, outside of any training."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from bn_lightning.analysis.checkpoint_file import read_checkpoint, write_checkpoint
from bn_lightning.analysis.checkpoint_loading import CheckpointLoader
from bn_lightning.analysis.training import namespace_of_module, quiet_lightning, recorded_warnings
from bn_lightning.callbacks.offline import LoadOnceBuilt, RecalibrateBeforeValidation
from bn_lightning.errors import NoNormError
from bn_lightning.surgery.forward import call_model
from bn_lightning.surgery.statistics.estimators import Estimator
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport
from bn_lightning.surgery.statistics.running_statistics import statistics_of


@dataclass(frozen=True)
class RecalibratedCheckpoint:
    """A checkpoint with new statistics, and what they did.

    Attributes:
        path: The new file.
        report: What was estimated from how much, and how far each norm moved.
        before: What the module logs in validation, with the old statistics.
        after: The same with the new ones.
    """

    path: Path
    report: RecalibrationReport
    before: Mapping[str, float]
    after: Mapping[str, float]


def recalibrate_checkpoint(
    checkpoint: str | Path,
    *,
    model: Callable[[], Any],
    data: Callable[[], Any],
    out: str | Path | None = None,
    estimator: Estimator = "pooled",
    num_batches: int | None = None,
    regroup: int | None = None,
    entry: Literal["training_step", "forward"] = "training_step",
    progress: bool = False,
    trust: bool = False,
) -> RecalibratedCheckpoint:
    """Write a new checkpoint whose norms hold the population statistics of a data module's training data.

    With the data of another domain the same call adapts the model to that domain (AdaBN; Li et al., 2016, "Revisiting
    batch normalization for practical domain adaptation"), for which no labels are needed (``entry="forward"``). Nothing
    of the checkpoint changes but the running means and variances and the mark ``"bn_lightning_statistics"``; the old
    file stays. The module is validated before and after on the data module's validation data.

    Args:
        checkpoint: The file, written by Lightning, with or without inserted norms.
        model: Makes the LightningModule.
        data: Makes the LightningDataModule.
        out: The new file; by default beside the old one, ``<name>.recalibrated.ckpt``. One that is there is replaced.
        estimator: See `recalibrate_batch_norm`.
        num_batches: Training batches to use; all of them when None.
        regroup: Merge small batches up to so many samples.
        entry: What is run on a batch: the module's ``training_step``, or the module itself, as `recalibrate_batch_norm`
            does without `forward`.
        progress: Show a progress bar.
        trust: Whether to read checkpoints with pickled objects, which can run code.

    Returns:
        The new file, the report, and the validation metrics before and after.

    Raises:
        RunFolderError: If the file cannot be read, or the new one cannot be written.
        TypeError: If `model` makes no LightningModule, or `data` no LightningDataModule.
        ValueError: If `out` is the checkpoint itself, or there are no validation data.
        NoNormError: If the checkpoint holds no statistics of batch norms.
        PlanMismatchError: If the checkpoint is of another model.
    """
    source = Path(checkpoint)
    target = source.with_name(f"{source.stem}.recalibrated.ckpt") if out is None else Path(out)
    if target.resolve() == source.resolve():
        raise ValueError(f"out={str(target)!r} is the checkpoint itself, which is to be kept; name another file.")
    saved = read_checkpoint(source, trust=trust)
    if not any(str(name).endswith("running_var") for name in saved["state_dict"]):
        raise NoNormError(f"{source} holds no running statistics of batch norms, so there is nothing to recalibrate.")
    module = model()
    namespace = namespace_of_module(module)  # which says so if it is no LightningModule
    callback = RecalibrateBeforeValidation(
        forward=call_model if entry == "forward" else None,
        estimator=estimator,
        num_batches=num_batches,
        regroup=regroup,
        progress=progress,
    )
    loading = LoadOnceBuilt(CheckpointLoader(saved, source))
    before, after = _validate_around(namespace, module, data(), loading, callback)
    if callback.report is None:
        raise ValueError(
            f"{type(module).__name__} was not validated, so its norms were not recalibrated: the validation data of "
            "the data module hold no batch."
        )
    saved["state_dict"] |= _state_of_norms(module)
    saved["bn_lightning_statistics"] = {
        "kind": "population",
        "estimator": estimator,
        "global_step": saved.get("global_step", -1),
    }
    write_checkpoint(saved, target, like=source)
    return RecalibratedCheckpoint(target, callback.report, before, after)


def _state_of_norms(module: nn.Module) -> dict[str, Tensor]:
    statistics = statistics_of(module)
    first_names = {id(part): name for name, part in module.named_modules()}
    state: dict[str, Tensor] = {}
    # A state_dict has a norm of two names twice, and loading takes the last.
    for name, part in module.named_modules(remove_duplicate=False):
        values = statistics.get(first_names[id(part)])
        if values is not None:
            prefix = f"{name}." if name else ""
            state[f"{prefix}running_mean"] = values["mean"].cpu()
            state[f"{prefix}running_var"] = values["variance"].cpu()
    return state


def _validate_around(
    namespace: Any, module: Any, data: Any, loading: LoadOnceBuilt, callback: RecalibrateBeforeValidation
) -> tuple[dict[str, float], dict[str, float]]:
    if not hasattr(data, "prepare_data"):
        raise TypeError(
            f"The training data come from a LightningDataModule, but data() made a {type(data).__qualname__}. Put its "
            "loaders into the train_dataloader and val_dataloader of a LightningDataModule."
        )
    silent: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    metrics: list[dict[str, float]] = []
    with recorded_warnings() as caught, quiet_lightning():
        for callbacks in ([loading], [loading, callback]):
            trainer = namespace.Trainer(devices=1, callbacks=callbacks, **silent)
            if not metrics:
                data.trainer = trainer
                data.prepare_data()
                # The training data may be set up in this stage only.
                data.setup("fit")
            results = trainer.validate(module, datamodule=data, verbose=False)
            metrics.append({name: value for result in results for name, value in result.items()})
    for warning in caught:
        # Lightning's own advice is about a training that does not take place.
        if warning.category.__module__.startswith("bn_lightning."):
            warnings.warn(warning.message, warning.category, stacklevel=3)
    return metrics[0], metrics[1]
