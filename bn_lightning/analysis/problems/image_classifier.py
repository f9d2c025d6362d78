"""What the image networks share: cross-entropy, accuracy, plain SGD."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


class ImageClassifier(pl.LightningModule):
    """Cross-entropy of ten classes, by SGD without momentum; logs `<evaluate>_accuracy` and `<evaluate>_loss`.

    Weights of convolutions and linear layers start as draws of Glorot's uniform initialisation, biases at 0, as in
    Santurkar et al. (2018).

    Args:
        net: Images `[N, 3, 32, 32]` in, logits `[N, 10]` out.
        lr: Learning rate.
        evaluate: Name of the set that the validation loop reads.
    """

    def __init__(self, net: nn.Module, *, lr: float, evaluate: str) -> None:
        super().__init__()
        self.lr = lr
        self.evaluate = evaluate
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        self.net = net
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro", validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten classes."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, classes = batch
        return F.cross_entropy(self(images), classes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log accuracy and cross-entropy of the set."""
        images, classes = batch
        logits = self(images)
        self.accuracy(logits, classes)
        self.log(f"{self.evaluate}_accuracy", self.accuracy, on_epoch=True, on_step=False, batch_size=len(classes))
        loss = F.cross_entropy(logits, classes)
        self.log(f"{self.evaluate}_loss", loss, on_epoch=True, on_step=False, batch_size=len(classes))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD without momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)
