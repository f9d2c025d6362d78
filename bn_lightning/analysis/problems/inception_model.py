"""How the small Inception-style network is trained without batch norm: as GoogLeNet was."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bn_lightning.analysis.problems.image_classifier import ImageClassifier
from bn_lightning.analysis.problems.inception_net import InceptionNet

DECAY, DECAY_EPOCHS = 0.96, 8  # GoogLeNet's rate falls by 4 % every 8 epochs


class Inception(ImageClassifier):
    """SGD with momentum 0.9, L2, dropout, a rate that falls by 4 % every 8 epochs, and an auxiliary head at weight 0.3.

    It has no `example_input_array`: only ``training_step`` runs both heads, so that is what insertion traces, and the
    auxiliary head's fully connected layer gets a norm as in the paper.

    Source: Szegedy et al. 2014, sections 5 and 6; Ioffe & Szegedy 2015, section 4.2.

    Args:
        pixels: 64 for the embedded digits, 784 for MNIST.
        width: An eighth of each module's channels.
        lr: Initial learning rate.
        weight_decay: L2.
        dropout: See `InceptionNet`.
        auxiliary_weight: Of the auxiliary head's loss.
        evaluate: Name of the set that the validation loop reads.

    Example:
        >>> Inception(width=1)(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    net: InceptionNet

    def __init__(
        self,
        *,
        pixels: int = 64,
        width: int = 4,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        dropout: float = 0.4,
        auxiliary_weight: float = 0.3,
        evaluate: str = "test",
    ) -> None:
        net = InceptionNet(pixels=pixels, width=width, dropout=dropout)
        super().__init__(net, lr=lr, evaluate=evaluate)
        self.example_input_array = None
        self.weight_decay = weight_decay
        self.auxiliary_weight = auxiliary_weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, with that of the auxiliary head added."""
        images, classes = batch
        logits, auxiliary = self.net.both_heads(images)
        return F.cross_entropy(logits, classes) + self.auxiliary_weight * F.cross_entropy(auxiliary, classes)

    def configure_optimizers(self) -> Any:
        """SGD with momentum and L2, and the schedule, which takes a step an epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY ** (1 / DECAY_EPOCHS))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
