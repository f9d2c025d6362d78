"""Lightning callbacks: a schedule plus one call to a function that a plain loop can call too."""

from bn_lightning.callbacks.insertion import BatchNormInsertion

__all__ = ["BatchNormInsertion"]
