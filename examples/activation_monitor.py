"""Watch a deep sigmoid network on real digits, without batch norm and with it: the same callback, two runs.

Open what it writes with `tensorboard --logdir monitored`; Custom Scalars, Images, Distributions and Histograms show it.
"""

# %% Eight hidden sigmoid layers on the digits that come with scikit-learn.
import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.callbacks import ActivationMonitor, BatchNormInsertion


class DeepSigmoid(pl.LightningModule):
    def __init__(self, depth: int = 8, width: int = 64) -> None:
        super().__init__()
        hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Sigmoid())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 10))
        self.example_input_array = torch.zeros(2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


# %% The same weights and batches in both runs; the monitor sees every layer every ten steps.
def watch(folder: Path, *, norm: bool, steps: int) -> ActivationMonitor:
    pl.seed_everything(0, verbose=False)
    model = DeepSigmoid()
    monitor = ActivationMonitor(every_n_steps=10, mode="exact", record=("preactivations", "gradients"), warn=norm)
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[BatchNormInsertion(), monitor] if norm else [monitor],
        logger=pl.loggers.TensorBoardLogger(folder, name="", version="with_bn" if norm else "without_bn"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, DigitsData(batch_size=60))
    return monitor


# %% Without norms hardly any gradient reaches the first layer; with them it does.
def main(folder: str = "monitored", steps: int = 200) -> dict[str, float]:
    shares = {}
    for norm in (False, True):
        table = watch(Path(folder), norm=norm, steps=steps).table()
        norms = table[table["quantity"] == "preactivation_gradient_norm"].pivot_table(
            index="step", columns="layer", values="value", sort=False
        )
        shares["with BN" if norm else "without BN"] = float((norms["net.0"] / norms["net.14"]).median())
    for name, share in shares.items():
        print(f"{name:10}  gradient norm at the first layer over that at the last: {share:.1e}")
    assert shares["without BN"] < 1e-3 < 0.05 < shares["with BN"]
    return shares


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="monitored")
    parser.add_argument("--steps", type=int, default=200)
    main(**vars(parser.parse_args()))
