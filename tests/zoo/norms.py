"""Networks that have norms already, before an activation or behind it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import NORMALISED, Case, inputs

IMAGE = inputs((3, 8, 8))


class NormedBlock(nn.Module):
    """A basic block as published: both convolutions and the sum have norms behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class PreActivation(nn.Module):
    """Norm, relu, convolution; the norm reads the running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return self.head(x)


class OwnRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class FiLM(nn.Module):
    """Scale and shift of a convolution's channels by a condition, with or without a norm before them."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv, self.film, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 8), nn.Conv2d(4, 1, 1)
        self.norm = nn.BatchNorm2d(4, affine=False) if norm else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return self.head(F.relu(scale * self.norm(self.conv(x)) + shift))


def normed(*norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norm, nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ELU(), nn.Conv2d(5, 1, 1))


SKIP = (("relu", NORMALISED),)


CASES = (
    Case("resnet_block_normed", NormedBlock, inputs((4, 5, 5)), (), (), SKIP),
    Case("preactivation_normed", PreActivation, IMAGE, (), (), SKIP),
    Case("group_norm_before", lambda: normed(nn.GroupNorm(2, 4)), IMAGE, (("3", "elu"),), (5,), SKIP),
    Case(
        "instance_norm_and_pool_before",
        lambda: normed(nn.InstanceNorm2d(4), nn.AvgPool2d(2)),
        IMAGE,
        (("4", "elu"),),
        (5,),
        SKIP,
    ),
    Case(
        "norm_after",
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)
        ),
        inputs((5,)),
        (("3", "tanh"),),
        (6,),
        SKIP,
    ),
    Case(
        "layer_and_rms_norm",
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 6), nn.RMSNorm(6), nn.SiLU(), nn.Linear(6, 2)
        ),
        inputs((9, 5)),
        (),
        (),
        (("relu", NORMALISED), ("silu", NORMALISED)),
    ),
    # A norm written by hand is one all the same; nothing but its arithmetic says so.
    Case(
        "own_rms_norm",
        lambda: nn.Sequential(nn.Linear(5, 7), OwnRMSNorm(7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)),
        inputs((9, 5)),
        (("3", "tanh"),),
        (6,),
        SKIP,
    ),
    Case("film", lambda: FiLM(False), inputs((3, 6, 6), (5,)), (("conv|film", "relu"),), (4,)),
    # Conditional batch norm: a second norm behind the condition's scale and shift would undo them.
    Case("film_normed", lambda: FiLM(True), inputs((3, 6, 6), (5,)), (), (), SKIP),
)
