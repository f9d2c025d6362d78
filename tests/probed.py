"""What the tests of monitors that run probes share: a module that shows every disturbance, its data and its fit."""

import pytorch_lightning as pl
import torch
from monitored import quiet_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class ProbedNet(pl.LightningModule):
    """Norms, dropout, a metric and logging: everything a careless probe disturbs."""

    def __init__(self, net: nn.Sequential, lr: float = 0.5, scale: float = 1.0):
        super().__init__()
        self.net, self.lr, self.scale, self.accuracy = net, lr, scale, MulticlassAccuracy(3)
        self.logged, self.weights = [], {}

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        scores = self(batch[0])
        loss = self.scale * F.cross_entropy(scores, batch[1])
        self.accuracy(scores, batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def on_train_batch_start(self, batch, batch_idx):
        self.weights.setdefault(self.global_step, {name: part.clone() for name, part in self.net.state_dict().items()})

    def on_train_epoch_end(self):
        self.logged.append({name: value.item() for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class DeepNet(ProbedNet):
    """Two layers behind the first, so that something can shift."""

    def __init__(self, dropout=0.3, lr=0.5, bias=0.0):
        layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 5), nn.ReLU())
        super().__init__(nn.Sequential(*layers, nn.Linear(5, 3)), lr)
        nn.init.constant_(self.net[4].bias, bias)


class SmoothNet(ProbedNet):
    """A smooth nonlinearity behind a norm."""

    def __init__(self, dropout=0.3, lr=0.5, scale=1.0):
        layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))
        super().__init__(nn.Sequential(*layers), lr, scale)


def plain_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(samples=60, batch_size=10, **options):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size, **options)


def fit(tmp_path, module, *callbacks, loader=None, ckpt_path=None, seed=3, **options):
    """Train with callbacks; the module is called only once the seed is set, so it is built from it."""
    torch.manual_seed(seed)
    module = module() if isinstance(module, type) else module
    trainer = quiet_trainer(tmp_path, callbacks=list(callbacks), **{"max_steps": 9, **options})
    trainer.fit(module, data(shuffle=True) if loader is None else loader, ckpt_path=ckpt_path)
    return module, trainer


def values(monitor, step, layer=""):
    """A layer's numbers at a step by quantity."""
    table = monitor.table()
    rows = table[(table["step"] == step) & (table["layer"] == layer)]
    return dict(zip(rows["quantity"], rows["value"], strict=True))


class Interrupt(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            raise OSError("the disk is on fire")
