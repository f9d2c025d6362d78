"""A network in network for CIFAR-10."""

from torch import nn

from bn_lightning.analysis.problems.image_classifier import ImageClassifier


class NIN(ImageClassifier):
    """Three blocks of one convolution and two of 1 × 1, each with ReLU; the mean over positions is the output.

    Source: Lin, Chen & Yan (2014), "Network In Network", with channels scaled by `width`; 192 is theirs. Im et al.
    (2016) draw loss surfaces of one. No norm, and no dropout, anywhere.

    Args:
        width: Channels of the widest convolutions, a multiple of 12.
        lr: Learning rate.
        evaluate: Name of the set that the validation loop reads.

    Raises:
        ValueError: If the width is no positive multiple of 12.

    Example:
        >>> import torch
        >>> NIN(width=12)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, width: int = 192, lr: float = 0.1, evaluate: str = "test") -> None:
        if width < 12 or width % 12:
            raise ValueError(f"The width of a NIN is a positive multiple of 12, not {width}.")
        first = _block(3, 5, (width, width * 5 // 6, width // 2))
        second = _block(width // 2, 5, (width, width, width))
        third = _block(width, 3, (width, width, 10))
        pools = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(3, stride=2, padding=1)
        # The last ReLU is left out: behind it a logit could not fall below 0.
        net = nn.Sequential(*first, pools[0], *second, pools[1], *third[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(net, lr=lr, evaluate=evaluate)


def _block(inputs: int, size: int, channels: tuple[int, int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number, outputs in enumerate(channels):
        side = 1 if number else size
        layers += [nn.Conv2d(inputs, outputs, side, padding=side // 2), nn.ReLU()]
        inputs = outputs
    return layers
