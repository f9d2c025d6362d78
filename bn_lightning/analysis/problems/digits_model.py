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
    """Fully connected hidden layers, three of 100 units by default, trained by plain SGD; no norm anywhere.

    Weights start as draws from N(0, weight_std²), biases at 0; the loss is the cross-entropy. Logs, for the set that is
    evaluated on, `<evaluate>_accuracy` and `<evaluate>_loss`. The layers are `net.0`, `net.2`, `net.4` and `net.6`.

    Source: Ioffe & Szegedy 2015, section 4.1, which leaves rate and standard deviation open.

    Args:
        pixels: Inputs: 64 for the embedded digits, 784 for MNIST.
        lr: Learning rate.
        weight_std: Standard deviation of the initial weights. None lets it follow from the layer: gain/√inputs, with
            the gain of the activation (1 for a sigmoid, √2 for a ReLU, 5/3 for a tanh; He et al. 2015, section 2.2) for
            hidden layers and 1 for the last.
        activation: "sigmoid" as in the paper, "relu" or "tanh".
        depth: Hidden layers.
        width: Units of each.
        evaluate: Name of the set that the validation loop reads.

    Raises:
        UnknownNameError: If there is no such activation.
        ValueError: If depth or width is not positive.

    Example:
        >>> DigitsMLP()(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        pixels: int = 64,
        lr: float = 1.0,
        weight_std: float | None = 0.05,
        activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid",
        depth: int = 3,
        width: int = 100,
        evaluate: str = "test",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        if min(depth, width) < 1:
            raise ValueError(f"depth={depth} hidden layers of width={width} make no network; give positive numbers.")
        self.lr = lr
        self.evaluate = evaluate
        self.example_input_array = torch.zeros(2, pixels)
        layers: list[nn.Module] = []
        for inputs in (pixels, *[width] * (depth - 1)):
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                gain = 1.0 if layer is self.net[-1] else nn.init.calculate_gain(activation)
                std = gain / layer.in_features**0.5 if weight_std is None else weight_std
                nn.init.normal_(layer.weight, std=std)
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
