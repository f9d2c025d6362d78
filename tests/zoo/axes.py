"""Where the channel axis goes: permuted, shuffled, split, joined and flattened."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, inputs

IMAGE = inputs((3, 8, 8))


def super_resolution() -> nn.Module:
    """Pixel shuffle leaves a quarter of the convolution's channels to the activation."""
    return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(3), nn.Conv2d(3, 1, 3, padding=1))


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.second(F.relu(x))


class ChannelsLast(nn.Module):
    """A ConvNeXt block without its norm: convolve, permute, and go on with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.down(F.gelu(self.up(self.depthwise(x).permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class FlattenFirst(nn.Module):
    """Flattened before the activation, each position of each channel is a feature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x).flatten(1)))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class CrossStage(nn.Module):
    """Half of a convolution's channels pass an activation, the other half does not."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.deep, self.join = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x).chunk(2, dim=1)
        return self.join(torch.cat([F.silu(self.deep(F.silu(left))), right], dim=1))


class Concatenated(nn.Module):
    """One activation over two convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.wide(x), self.narrow(x)], dim=1)))


class CReLU(nn.Module):
    """Both signs of one convolution, each through its own relu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(torch.cat([F.relu(x), F.relu(-x)], dim=1))


class Video(nn.Module):
    """Frames are folded into the batch for two dimensions, then unfolded for time."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.space, self.time = nn.Conv2d(3, 4, 3), nn.Conv3d(4, 5, (1, 3, 3)), nn.Conv3d(5, 2, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        x = F.relu(self.frame(x.flatten(0, 1))).unflatten(0, (batch, frames)).transpose(1, 2)
        return self.time(F.elu(self.space(x)))


CASES = (
    Case("pixel_shuffle", super_resolution, inputs((1, 4, 4)), (("0", "prelu"),), (3,)),
    Case("channel_shuffle", ShuffleNet, inputs((4, 5, 5)), (("first", "relu"),), (6,)),
    Case("channels_last", ChannelsLast, IMAGE, (("stem", "hardswish"), ("up", "gelu")), (4, 8)),
    Case("flatten_first", FlattenFirst, inputs((1, 6, 6)), (("conv", "relu"),), (48,)),
    Case("patches", Patches, IMAGE, (("embed", "relu"),), (6,)),
    Case("cross_stage", CrossStage, IMAGE, (("split", "silu"), ("deep", "silu")), (4, 4)),
    Case("concatenated", Concatenated, IMAGE, (("wide|narrow", "relu"),), (6,)),
    Case("crelu", CReLU, IMAGE, (("conv", "relu"), ("conv", "relu")), (4, 4)),
    Case("video", Video, inputs((4, 3, 6, 6)), (("frame", "relu"), ("space", "elu")), (4, 5)),
)
