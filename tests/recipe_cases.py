"""A module with something for each item of the recipe, and what the recipe comes to, written by hand."""

import pytorch_lightning as pl
import torch
from inserted import Lit
from torch import nn

from bn_lightning.callbacks import BatchNormRecipe

OFF = {
    "learning_rate": None,
    "remove_dropout": False,
    "divide_weight_decay": None,
    "decay_faster": None,
    "remove_local_response_norm": False,
    "shuffle": False,
}


def only(**items):
    return BatchNormRecipe(**{**OFF, **items})


def layers() -> nn.Sequential:
    norm = nn.Sequential(nn.Unflatten(1, (8, 1)), nn.LocalResponseNorm(3, alpha=1.0), nn.Flatten())
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), norm, nn.Dropout(0.4), nn.Linear(8, 3))


class Whole(Lit):
    """Something for each item."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers()

    def configure_optimizers(self):
        weights = [{"params": self.net[0].parameters(), "weight_decay": 0.5}, {"params": self.net[4].parameters()}]
        optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98), "interval": "step"}]


class ByHand(Whole):
    """What the recipe comes to, written into the module."""

    def __init__(self) -> None:
        super().__init__()
        self.net[2], self.net[3] = nn.Identity(), nn.Identity()

    def configure_optimizers(self):
        weights = [{"params": self.net[0].parameters(), "weight_decay": 0.1}, {"params": self.net[4].parameters()}]
        optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98**6)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def weights_of(model):
    return {name: value for name, value in model.state_dict().items() if "bn_lightning_removed" not in name}


class Failing(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        raise OSError("the disk is on fire")


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, *args):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])
