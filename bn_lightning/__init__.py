"""Batch normalization for PyTorch and Lightning: insert it, get its population statistics right, see what it did.

The verbs here work on any `torch.nn.Module` and never import Lightning; the callbacks that call them
are in `bn_lightning.callbacks`, the comparisons in `bn_lightning.analysis`.
"""

from bn_lightning._version import __version__
from bn_lightning.probes.recording import record_activations
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.checkpoint import load_from_checkpoint
from bn_lightning.surgery.checkpoint_mixin import InsertedNormsMixin
from bn_lightning.surgery.folding.fold import fold_batch_norm
from bn_lightning.surgery.folding.fold_plan import FoldingPlan
from bn_lightning.surgery.folding.fold_planning import plan_folding
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.parameter_groups import parameter_groups
from bn_lightning.surgery.plan import InsertionPlan, Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.statistics.identity_start import start_as_identity
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport
from bn_lightning.surgery.statistics.recent_batches import RecentBatchStatistics

__all__ = [
    "FoldingPlan",
    "InsertedNormsMixin",
    "InsertionPlan",
    "RecalibrationReport",
    "RecentBatchStatistics",
    "Site",
    "__version__",
    "apply_plan",
    "fold_batch_norm",
    "insert_batch_norm",
    "load_from_checkpoint",
    "parameter_groups",
    "plan_folding",
    "plan_insertion",
    "recalibrate_batch_norm",
    "record_activations",
    "remove_batch_norm",
    "start_as_identity",
]
