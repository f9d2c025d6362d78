"""A small LightningModule and its data, for the tests of callbacks that watch training."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset


class SmallNet(pl.LightningModule):
    """Two hidden sigmoid layers with dropout between, so that a disturbed random state would show."""

    def __init__(self, *, learning_rate: float = 0.5, example: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(8, 5), nn.Sigmoid(), nn.Linear(5, 3)
        )
        self.learning_rate = learning_rate
        if example:
            self.example_input_array = torch.zeros(4, 6)
        self.inputs: list[tuple[int, torch.Tensor]] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.inputs.append((self.trainer.global_step, x))
        self.weights.setdefault(
            self.trainer.global_step,
            {name: value.detach().clone() for name, value in self.state_dict().items() if not is_lazy(value)},
        )
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def first_preactivations(self, step: int) -> torch.Tensor:
        """What the first sigmoid received at an optimizer step, computed anew in float64."""
        weights = self.weights[step]
        x = torch.cat([inputs for at, inputs in self.inputs if at == step]).double()
        return x @ weights["net.0.weight"].double().T + weights["net.0.bias"].double()


def small_data(samples: int = 60, batch_size: int = 10, **options) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size, **options)


def quiet_trainer(folder, **options) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )
