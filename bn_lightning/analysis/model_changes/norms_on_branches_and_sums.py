"""Norms on every branch of a sum and on the sum as well, which no single site of insertion gives."""

import glob
from typing import TYPE_CHECKING

from bn_lightning.analysis.model_changes.model_change import ModelChange
from bn_lightning.callbacks._insertion_run import trace_plan
from bn_lightning.surgery.attach import apply_plan

if TYPE_CHECKING:
    from bn_lightning.callbacks._compat import LightningModule, Trainer


class NormsOnBranchesAndSums(ModelChange):
    """Inserts batch norm as `site="affine"` does, and also on the sums that `site="nonlinearity"` normalises.

    In a model without additions that is the same as either alone.

    Raises:
        NoSiteError: During setup, if nothing in the model can be normalised.
        MisconfigurationException: During setup, if there is nothing to trace the module with.

    Example:
        >>> callbacks = [NormsOnBranchesAndSums()]  # in place of BatchNormInsertion
    """

    def change(self, trainer: "Trainer", module: "LightningModule") -> None:
        """Plan both, and insert the union."""
        plan = trace_plan(trainer, module, entry=None, num_examples=1, options={"site": "affine"})
        sums = trace_plan(trainer, module, entry=None, num_examples=1, options={"site": "nonlinearity"})
        wanted = {site.name for site in sums.inserted}
        for site in plan.skipped:
            if site.name in wanted:
                plan = plan.override(glob.escape(site.name), "insert")
        apply_plan(module, plan)
