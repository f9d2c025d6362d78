"""A small fully connected residual network."""

import torch
from torch import Tensor, nn

from bn_lightning.analysis.problems.image_classifier import ImageClassifier


class ResidualBlock(nn.Module):
    """`relu(h + second(relu(first(h))))`: the last nonlinearity receives the sum of the skip and the branch.

    Args:
        width: Units in and out, and in between.

    Example:
        >>> ResidualBlock(8)(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.act = nn.ReLU()
        self.second = nn.Linear(width, width)
        self.out = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output, `[N, width]` like its input."""
        return self.out(hidden + self.second(self.act(self.first(hidden))))


class ResidualMLP(ImageClassifier):
    """A linear layer and a ReLU, residual blocks, a linear layer; plain SGD, no norm anywhere.

    Layers are `net.0`, `net.2.first`, `net.2.second`, …; weights start as draws of Glorot's uniform initialisation.

    Source: He et al. 2016, section 3.2 and figure 2, with linear layers in place of convolutions and the norms left
    out.

    Args:
        pixels: Inputs: 64 for the embedded digits, 784 for MNIST.
        blocks: Number of residual blocks.
        width: Units of each layer.
        lr: Learning rate.
        evaluate: Name of the set that the validation loop reads.

    Example:
        >>> ResidualMLP(blocks=2, width=8)(torch.zeros(4, 64)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, *, pixels: int = 64, blocks: int = 6, width: int = 64, lr: float = 0.02, evaluate: str = "test"
    ) -> None:
        stem = nn.Linear(pixels, width), nn.ReLU()
        net = nn.Sequential(*stem, *(ResidualBlock(width) for _ in range(blocks)), nn.Linear(width, 10))
        super().__init__(net, lr=lr, evaluate=evaluate)
        self.example_input_array = torch.zeros(2, pixels)
