"""Which batch norms of a model get new statistics, and why the others do not."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bn_lightning.errors import NoNormError
from bn_lightning.surgery.statistics.recalibration_report import SkippedNorm

FROZEN = "frozen: in evaluation mode while the model is in training mode"
UNTRACKED = "keeps no running statistics (track_running_stats=False)"


def recalibration_targets(model: nn.Module) -> tuple[dict[str, _BatchNorm], list[SkippedNorm]]:
    """The norms to estimate for, and those that keep what they have.

    Args:
        model: Any module. While it is in training mode, norms in evaluation mode count as frozen.

    Returns:
        Norms by path, and the others with reasons.

    Raises:
        NoNormError: If there is nothing to estimate for.
        RuntimeError: If a lazy norm has not been initialised.

    Example:
        >>> norms, skipped = recalibration_targets(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()))
        >>> list(norms), [norm.layer for norm in skipped]
        (['0'], ['1'])
    """
    norms: dict[str, _BatchNorm] = {}
    skipped: list[SkippedNorm] = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise RuntimeError(
                f"The norm {name!r} ({type(module).__name__}) has not been initialised; run the model on a batch first."
            )
        if not module.track_running_stats or module.running_mean is None or module.running_var is None:
            skipped.append(SkippedNorm(name, UNTRACKED))
        elif model.training and not module.training:
            skipped.append(SkippedNorm(name, FROZEN))
        else:
            norms[name] = module
    if norms:
        return norms, skipped
    if skipped:
        reasons = "; ".join(f"{norm.layer!r}: {norm.reason}" for norm in skipped)
        raise NoNormError(f"No batch norm of {type(model).__name__} can be recalibrated. {reasons}.")
    raise NoNormError(
        f"{type(model).__name__} has no batch norm (no instance of torch's BatchNorm or SyncBatchNorm); "
        "insert_batch_norm puts them in."
    )
