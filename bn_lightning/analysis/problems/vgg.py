"""A VGG-like network for CIFAR-10."""

from torch import nn

from bn_lightning.analysis.problems.image_classifier import ImageClassifier

# Multiples of the width of each convolution; 0 is a maximum over 2 × 2. VGG-11 of Simonyan & Zisserman (2015).
_VGG_11 = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)
_VGG_8 = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0)


class VGG(ImageClassifier):
    """3 × 3 convolutions with ReLU and maxima, one linear layer behind them; no norm anywhere.

    Source: Simonyan & Zisserman (2015), configuration A, on 32 × 32 images with one linear layer for three, as is usual
    there; Santurkar et al. (2018) train one on CIFAR-10.

    Args:
        width: Channels of the first convolution; the deepest have 8 times as many. VGG-11 has 64.
        convolutions: 8 for VGG-11, or 6 for one that leaves the last two out.
        lr: Learning rate.
        evaluate: Name of the set that the validation loop reads.

    Raises:
        ValueError: If there is no network of so many convolutions.

    Example:
        >>> import torch
        >>> VGG(width=4, convolutions=6)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, width: int = 64, convolutions: int = 8, lr: float = 0.1, evaluate: str = "test") -> None:
        if convolutions not in (6, 8):
            raise ValueError(f"A VGG here has 6 or 8 convolutions, not {convolutions}.")
        layers: list[nn.Module] = []
        channels, side = 3, 32
        for multiple in _VGG_8 if convolutions == 6 else _VGG_11:
            if multiple:
                layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.ReLU()]
                channels = multiple * width
            else:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 10))
        super().__init__(net, lr=lr, evaluate=evaluate)
