"""Lightning callbacks: a schedule plus one call to a function that a plain loop can call too."""

from bn_lightning.callbacks.covariate_shift import CovariateShiftMonitor
from bn_lightning.callbacks.insertion import BatchNormInsertion
from bn_lightning.callbacks.loss_smoothness import LossSmoothnessMonitor
from bn_lightning.callbacks.monitor import ActivationMonitor
from bn_lightning.callbacks.recalibration import BatchNormRecalibration
from bn_lightning.callbacks.recipe import BatchNormRecipe

__all__ = [
    "ActivationMonitor",
    "BatchNormInsertion",
    "BatchNormRecalibration",
    "BatchNormRecipe",
    "CovariateShiftMonitor",
    "LossSmoothnessMonitor",
]
