"""Weights used as functions of tensors, away from any layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import HEAD, Case, inputs


class OwnWeights(nn.Module):
    """Three affine layers on parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.zeros(7))
        self.w2, self.b2 = nn.Parameter(torch.randn(7, 6) / 3), nn.Parameter(torch.zeros(6))
        self.w3, self.kernel = nn.Parameter(torch.randn(6, 4) / 3), nn.Parameter(torch.randn(2, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.w1, self.b1))
        x = torch.tanh(x @ self.w2 + self.b2)
        x = F.gelu(torch.addmm(x.new_zeros(4), x, self.w3))
        return F.linear(x, self.kernel)


class OwnKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3))
        self.head = nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.conv1d(x, self.kernel, padding=1)))


class Einsum(nn.Module):
    """The new axis is the channel: last for one projection, second for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.second = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 7) / 2)
        self.head = nn.Conv1d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("btc,cd->btd", x, self.last))
        return self.head(torch.tanh(torch.einsum("btd,de->bet", x, self.second)))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.head = nn.Bilinear(5, 4, 6), nn.Linear(6, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(F.relu(self.pair(left, right)))


class TiedAutoencoder(nn.Module):
    """The decoder multiplies with the transposed weights of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(9, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(F.relu(self.outer(x))))
        hidden = F.elu(F.linear(code, self.inner.weight.t()))
        return torch.sigmoid(F.linear(hidden, self.outer.weight.t()))


class Hypernetwork(nn.Module):
    """The weights are themselves the output of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.generator, self.head = nn.Parameter(torch.randn(3)), nn.Linear(3, 30), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(x, self.generator(self.style).view(6, 5))))


class Bypassed(nn.Module):
    """Layers used without calling them as modules: hooks on them do not fire."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first.forward(x))
        return self.head(F.relu(F.linear(x, self.second.weight, self.second.bias)))


class Maxout(nn.Module):
    """The larger of two linear layers is a nonlinearity of two inputs, and no site."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.hidden, self.head = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(torch.maximum(self.left(x), self.right(x)))))


class Capsules(nn.Module):
    """Squashing rescales whole vectors and is written in arithmetic: no site."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.primary = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.routes = nn.Parameter(torch.randn(8, 2, 3, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(F.relu(self.conv(x)))
        capsules = x.view(len(x), 2, 3, 4).permute(0, 1, 3, 2).reshape(len(x), 8, 3)
        votes = torch.einsum("bic,inco->bino", capsules, self.routes).sum(1)
        squared = votes.square().sum(-1, keepdim=True)
        return (votes * squared.sqrt() / (1 + squared)).norm(dim=-1)


class SpectralConv(nn.Module):
    """A Fourier layer: the lowest frequencies are mixed with complex weights."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("bik,iok->bok", torch.fft.rfft(x)[..., : self.modes], self.weight)
        return torch.fft.irfft(low, n=x.shape[-1])


class FourierOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 1, 1)
        self.spectral = nn.ModuleList([SpectralConv(4, 3), SpectralConv(4, 3)])
        self.skips = nn.ModuleList([nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, skip in zip(self.spectral, self.skips, strict=True):
            x = F.gelu(spectral(x) + skip(x))
        return self.head(x)


CASES = (
    Case("own_weights", OwnWeights, inputs((5,)), (("", "relu"), ("", "tanh"), ("", "gelu")), (7, 6, 4)),
    Case("own_kernel", OwnKernel, inputs((2, 8)), (("", "relu"),), (4,)),
    Case("einsum", Einsum, inputs((4, 5)), (("", "relu"), ("", "tanh")), (6, 7)),
    Case("bilinear", Bilinear, inputs((5,), (4,)), (("pair", "relu"),), (6,)),
    Case(
        "tied_autoencoder",
        TiedAutoencoder,
        inputs((9,)),
        (("outer", "relu"), ("inner", "tanh"), ("inner|", "elu")),
        (7, 4, 7),
        (("sigmoid", HEAD),),
    ),
    Case("hypernetwork", Hypernetwork, inputs((5,)), (("generator|", "relu"),), (6,)),
    Case("bypassed_modules", Bypassed, inputs((5,)), (("first|", "relu"), ("second|", "relu")), (7, 6)),
    Case("maxout", Maxout, inputs((5,)), (("hidden", "relu"),), (5,)),
    Case("capsules", Capsules, inputs((1, 6, 6)), (("conv", "relu"),), (4,)),
    Case(
        "fourier_operator",
        FourierOperator,
        inputs((2, 8)),
        tuple((f"skips.{index}|spectral.{index}|", "gelu") for index in range(2)),
        (4, 4),
    ),
)
