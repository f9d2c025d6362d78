"""A deep network without nonlinearities, on random regression: batch norm where there is nothing to saturate."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

LAYERS = 25
WIDTH = 10
SAMPLES = 1000


class LinearNet(pl.LightningModule):
    """25 linear layers of 10 × 10, least squares, full-batch gradient descent.

    Weights start as draws of Glorot's normal initialisation, biases at 0. Insertion acts on nonlinearities and finds
    none here, so a norm comes by `norm`, behind every layer but the last. Layers are `net.0`, … or, with a norm
    behind each, `net.0`, `net.2`, ….

    Source: Santurkar et al. (2018), section 3.1 and appendix: 25 layers of 10 × 10, 1,000 inputs from N(0, 1), full
    batch, learning rate 1e-6, 10,000 steps. What the targets are, and whether the loss is a sum or a mean, is not
    said; a sum at a rate of 1e-7 shows the paper's contrast.

    Args:
        lr: Learning rate.
        reduction: Of the squared error over samples and outputs, "sum" or "mean".
        norm: Makes a norm for a number of channels, such as `nn.BatchNorm1d`; None for none.
        layers: Number of layers.
        width: Inputs and outputs of each.

    Raises:
        ValueError: If there is no such reduction.

    Example:
        >>> LinearNet(norm=nn.BatchNorm1d)(torch.zeros(4, 10)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        *,
        lr: float = 1e-7,
        reduction: str = "sum",
        norm: Callable[[int], nn.Module] | None = None,
        layers: int = LAYERS,
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"The squared error is reduced by 'sum' or 'mean', not {reduction!r}.")
        self.lr = lr
        self.reduction = reduction
        self.example_input_array = torch.zeros(2, width)
        parts: list[nn.Module] = []
        for depth in range(layers):
            layer = nn.Linear(width, width)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            parts += [layer] if norm is None or depth == layers - 1 else [layer, norm(width)]
        self.net = nn.Sequential(*parts)

    def forward(self, inputs: Tensor) -> Tensor:
        """The product of all layers."""
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Squared error, summed or averaged."""
        inputs, targets = batch
        return nn.functional.mse_loss(self(inputs), targets, reduction=self.reduction)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean squared error as `validation_mse`."""
        inputs, targets = batch
        self.log("validation_mse", nn.functional.mse_loss(self(inputs), targets), batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LinearData(pl.LightningDataModule):
    """1,000 inputs from N(0, 1) with a random linear map of them as targets, all in one batch.

    The map's entries are N(0, 1/width), so targets have a variance of about 1; there is no noise, so an error of 0 is
    within reach. Training and validation see the same samples: the question is of optimization.

    Args:
        seed: Of inputs and map.
        samples: Number of samples.
        width: Inputs and outputs.
    """

    def __init__(self, *, seed: int = 0, samples: int = SAMPLES, width: int = WIDTH) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(samples, width, generator=generator)
        chart = torch.randn(width, width, generator=generator) / width**0.5
        self.batch = inputs, inputs @ chart.T

    def train_dataloader(self) -> DataLoader:
        """The one batch, a step an epoch."""
        return DataLoader(TensorDataset(*self.batch), batch_size=len(self.batch[0]))

    def val_dataloader(self) -> DataLoader:
        """The same batch."""
        return self.train_dataloader()
