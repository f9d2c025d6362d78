"""Batch normalization for PyTorch and Lightning: insert it, get its population statistics right, see what it did.

The verbs here work on any `torch.nn.Module` and never import Lightning; the callbacks that call them
are in `bn_lightning.callbacks`, the comparisons in `bn_lightning.analysis`.
"""

from bn_lightning._version import __version__
from bn_lightning.probes.recording import record_activations
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.checkpoint import load_from_checkpoint
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan, Site
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm
from bn_lightning.surgery.statistics.recalibration_report import RecalibrationReport

__all__ = [
    "InsertionPlan",
    "RecalibrationReport",
    "Site",
    "__version__",
    "apply_plan",
    "insert_batch_norm",
    "load_from_checkpoint",
    "plan_insertion",
    "recalibrate_batch_norm",
    "record_activations",
    "remove_batch_norm",
]
