"""torchmetrics states around bn_lightning.functional, merged over ranks."""
