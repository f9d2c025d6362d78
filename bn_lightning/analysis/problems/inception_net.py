"""A small Inception-style network, with what later recipes take out: dropout and local response normalization."""

import math

import torch
from torch import Tensor, nn


class InceptionModule(nn.Module):
    """Four branches side by side: 1 × 1; 3 × 3; two 3 × 3 in place of a 5 × 5; a pool with a projection.

    Their outputs are in the proportions of module 3a of the paper, 2 : 2 : 3 : 1.

    Source: Ioffe & Szegedy 2015, section 4.2 and appendix, after Szegedy et al. 2014 ("Going Deeper with
    Convolutions").

    Args:
        inputs: Channels in.
        width: An eighth of the channels out.

    Example:
        >>> InceptionModule(3, 2)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        two, three = 2 * width, 3 * width
        self.by_1 = nn.Sequential(*_convolution(inputs, two, 1))
        self.by_3 = nn.Sequential(*_convolution(inputs, two, 1), *_convolution(two, two, 3))
        self.by_5 = nn.Sequential(
            *_convolution(inputs, two, 1),
            *_convolution(two, three, 3),
            *_convolution(three, three, 3),
        )
        self.by_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_convolution(inputs, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The branches' outputs, channel by channel: `[N, inputs, H, W]` in, `[N, 8 · width, H, W]` out."""
        return torch.cat([self.by_1(images), self.by_3(images), self.by_5(images), self.by_pool(images)], dim=1)


class InceptionNet(nn.Module):
    """Two convolutions with local response norms, three Inception modules, the mean over positions, one linear layer.

    A head of its own, behind the second module, helps in training: 1 × 1 convolution, a fully connected layer,
    dropout, logits. No batch norm anywhere.

    Source: Szegedy et al. 2014, sections 4 and 5, made small; Ioffe & Szegedy 2015, section 4.2, for the branches.

    Args:
        pixels: Of a square image of one channel: 64 (8 × 8) or 784 (28 × 28, which is halved before the modules).
        width: An eighth of each module's channels.
        dropout: Probability before the last layer; the auxiliary head's is 0.3 higher, as GoogLeNet's 0.7 is than 0.4.

    Raises:
        ValueError: If the images are not square, or smaller than 4 × 4, or dropout leaves nothing.

    Example:
        >>> InceptionNet(width=1)(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, pixels: int = 64, width: int = 4, dropout: float = 0.4) -> None:
        super().__init__()
        self.side = math.isqrt(pixels)
        if self.side**2 != pixels or self.side < 4:
            raise ValueError(f"Images are square and 4 × 4 or larger, which {pixels} pixels are not.")
        if not 0 <= dropout <= 0.7:
            raise ValueError(f"Dropout is from 0 to 0.7, as the auxiliary head's is 0.3 higher; got {dropout}.")
        channels = 8 * width
        large = self.side >= 16
        self.stem = nn.Sequential(
            *_convolution(1, channels, 3),
            *([nn.MaxPool2d(3, stride=2, padding=1)] * large),
            nn.LocalResponseNorm(5),
            *_convolution(channels, channels, 3),
            nn.LocalResponseNorm(5),
        )
        self.first = InceptionModule(channels, width)
        self.halve = nn.MaxPool2d(3, stride=2, padding=1)
        self.second = InceptionModule(channels, width)
        self.third = InceptionModule(channels, width)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, 10))
        self.auxiliary = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            *_convolution(channels, channels, 1),
            nn.Flatten(),
            nn.Linear(4 * channels, 2 * channels),
            nn.ReLU(),
            nn.Dropout(dropout + 0.3 if dropout else 0.0),
            nn.Linear(2 * channels, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, 10]` of images `[N, pixels]`."""
        return self.head(self.third(self._middle(images)))

    def both_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and those of the auxiliary head, `[N, 10]` each."""
        middle = self._middle(images)
        return self.head(self.third(middle)), self.auxiliary(middle)

    def _middle(self, images: Tensor) -> Tensor:
        squares = images.reshape(-1, 1, self.side, self.side)
        return self.second(self.halve(self.first(self.stem(squares))))


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.ReLU()]
