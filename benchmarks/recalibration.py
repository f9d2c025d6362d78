"""Time of recalibration over the plain training-mode forward without gradients, beside its peers.

python benchmarks/recalibration.py; how right the statistics are is in population_accuracy.py
"""

import copy
from functools import partial

import torch
from alternating import ratios, show
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn
from torch.optim.swa_utils import update_bn

from bn_lightning.surgery.statistics.recalibrate import recalibrate_batch_norm


def mlp(width, classes=10):
    layers = [nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Residual(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.skip = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x):
        return torch.relu(self.path(x) + self.skip(x))


def resnet18():
    blocks = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(Residual(channels, width, stride))
        channels = width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


@torch.no_grad()
def floor(model, batches):
    for batch in batches:
        model(batch)


def fvcore_update(model, batches):
    update_bn_stats(model, batches, num_iters=len(batches))


CONTENDERS = {
    "plain forward": floor,
    "swa_utils.update_bn": lambda model, batches: update_bn(batches, model),
    "fvcore update_bn_stats": fvcore_update,
    "pooled": lambda model, batches: recalibrate_batch_norm(model, batches, warn_drift=None),
    "pooled, no stop": lambda model, batches: recalibrate_batch_norm(
        model, batches, warn_drift=None, stop_after_last_norm=False
    ),
    "pooled, regroup=256": lambda model, batches: recalibrate_batch_norm(model, batches, warn_drift=None, regroup=256),
    "fixed_point": lambda model, batches: recalibrate_batch_norm(
        model, batches, warn_drift=None, estimator="fixed_point"
    ),
    "paper": lambda model, batches: recalibrate_batch_norm(model, batches, warn_drift=None, estimator="paper"),
}
MODELS = {
    "MLP 5×512, 40 batches of 32": (lambda: mlp(512), (64,), 40, 32, 30),
    "MLP 5×128, 100 batches of 8": (lambda: mlp(128), (64,), 100, 8, 30),
    "MLP 5×128 with 20,000 classes, 40 batches of 32": (lambda: mlp(128, 20_000), (64,), 40, 32, 10),
    "ResNet-18 on 32², 3 batches of 8": (resnet18, (3, 32, 32), 3, 8, 20),
}

if __name__ == "__main__":
    for title, (make, shape, num_batches, size, rounds) in MODELS.items():
        torch.manual_seed(0)
        batches = list(torch.randn(num_batches, size, *shape))
        model = make()
        runs = {name: partial(run, copy.deepcopy(model), batches) for name, run in CONTENDERS.items()}
        show(title, ratios(runs, rounds=rounds), "plain forward")
