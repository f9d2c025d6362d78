"""The network of the paper's first experiment."""

from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from bn_lightning.analysis.names import unknown_name

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


class DigitsMLP(pl.LightningModule):
    """Three fully connected hidden layers of 100 units, trained by plain SGD; no norm anywhere.

    Weights start as draws from N(0, weight_std²), biases at 0; the loss is the cross-entropy. Logs, for the set that is
    evaluated on, `<evaluate>_accuracy` and `<evaluate>_loss`. The layers are `net.0`, `net.2`, `net.4` and `net.6`.

    Source: Ioffe & Szegedy 2015, section 4.1, which leaves rate and standard deviation open.

    Args:
        pixels: Inputs: 64 for the embedded digits, 784 for MNIST.
        lr: Learning rate.
        weight_std: Standard deviation of the initial weights.
        activation: "sigmoid" as in the paper, "relu" or "tanh".
        evaluate: Name of the set that the validation loop reads.

    Raises:
        UnknownNameError: If there is no such activation.

    Example:
        >>> DigitsMLP()(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        pixels: int = 64,
        lr: float = 1.0,
        weight_std: float = 0.05,
        activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid",
        evaluate: str = "test",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self.lr = lr
        self.evaluate = evaluate
        self.example_input_array = torch.zeros(2, pixels)
        layers: list[nn.Module] = []
        for inputs in (pixels, 100, 100):
            layers += [nn.Linear(inputs, 100), ACTIVATIONS[activation]()]
        self.net = nn.Sequential(*layers, nn.Linear(100, 10))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=weight_std)
                nn.init.zeros_(layer.bias)
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro", validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, digits = batch
        return F.cross_entropy(self(images), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log accuracy and cross-entropy of the set."""
        images, digits = batch
        logits = self(images)
        self.accuracy(logits, digits)
        self.log(f"{self.evaluate}_accuracy", self.accuracy, on_epoch=True, on_step=False, batch_size=len(digits))
        loss = F.cross_entropy(logits, digits)
        self.log(f"{self.evaluate}_loss", loss, on_epoch=True, on_step=False, batch_size=len(digits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD without momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)
