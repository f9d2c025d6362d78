"""Products of branches: gates are left alone, the content they let through is not."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import GATE, Case, inputs


class GLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.glu(self.up(x)))


class GEGLU(GLU):
    """Content and gate are halves of one linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        content, gate = self.up(x).chunk(2, dim=-1)
        return x + self.down(content * F.gelu(gate))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transform, self.carry, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.carry(x))
        return self.head(gate * F.relu(self.transform(x)) + (1 - gate) * x)


class WaveNet(nn.Module):
    """Gated dilated convolutions with symmetric padding; one convolution makes content and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 2, 1)
        self.dilated = nn.ModuleList([nn.Conv1d(4, 8, 3, padding=d, dilation=d) for d in (1, 2)])
        self.skips = nn.ModuleList([nn.Conv1d(4, 4, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for dilated, skip in zip(self.dilated, self.skips, strict=True):
            content, gate = dilated(x).chunk(2, dim=1)
            branch = skip(torch.tanh(content) * torch.sigmoid(gate))
            x, total = x + branch, total + branch
        return self.head(F.relu(total))


class GatedPooling(nn.Module):
    """Attention pooling over instances whose scores are gated; softmax is no site."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.content, self.gate = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.score, self.head = nn.Linear(6, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        score = self.score(torch.tanh(self.content(x)) * torch.sigmoid(self.gate(x)))
        return self.head((score.softmax(dim=1) * x).sum(1))


class ContextGate(nn.Module):
    """A gate computed from what it gates is a gate still: an affine layer lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * self.gate(x).sigmoid())


class Product(nn.Module):
    """Two contents multiplied: neither is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.left(x)) * torch.tanh(self.right(x)))


class SiLUByHand(nn.Module):
    """`x * sigmoid(x)` on one tensor is one activation, on the output of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x * torch.sigmoid(x))
        return self.head(x.mul(x.sigmoid()))


class GELUByHand(SiLUByHand):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
        return self.head(0.5 * x * (1 + torch.erf(x / math.sqrt(2))))


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Swish(nn.Module):
    """A trained slope makes it no unit by the letter; the product is still on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


def perceptron(act) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), act(), nn.Linear(7, 6), act(), nn.Linear(6, 2))


BY_HAND = ("first", "second")
CASES = (
    Case("glu", GLU, inputs((9, 5)), (), (), (("glu", GATE),)),
    Case("geglu", GEGLU, inputs((9, 5)), (), (), (("gelu", GATE),)),
    Case("swiglu", SwiGLU, inputs((9, 5)), (), (), (("silu", GATE),)),
    Case("highway", Highway, inputs((6,)), (("transform", "relu"),), (6,), (("sigmoid", GATE),)),
    Case(
        "wavenet",
        WaveNet,
        inputs((2, 12)),
        (("dilated.0", "tanh"), ("dilated.1", "tanh"), ("skips.0|skips.1", "relu")),
        (4, 4, 4),
        (("sigmoid", GATE),),
    ),
    Case(
        "gated_attention_pooling",
        GatedPooling,
        inputs((7, 5)),
        (("embed", "relu"), ("content", "tanh")),
        (8, 6),
        (("sigmoid", GATE),),
    ),
    Case("context_gate", ContextGate, inputs((5,)), (), (), (("sigmoid", GATE),)),
    Case("product_of_contents", Product, inputs((5,)), (("left", "relu"), ("right", "tanh")), (6, 6)),
    Case("silu_by_hand", SiLUByHand, inputs((5,)), tuple((name, "silu") for name in BY_HAND), (7, 6), handwritten=True),
    Case("gelu_by_hand", GELUByHand, inputs((5,)), tuple((name, "gelu") for name in BY_HAND), (7, 6), handwritten=True),
    Case("new_gelu", lambda: perceptron(NewGELU), inputs((5,)), (("0", "newgelu"), ("2", "newgelu")), (7, 6)),
    Case(
        "trained_swish",
        lambda: perceptron(Swish),
        inputs((5,)),
        (("0", "swish"), ("2", "swish")),
        (7, 6),
        handwritten=True,
    ),
    Case("siren", lambda: perceptron(Sine), inputs((5,)), (("0", "sine"), ("2", "sine")), (7, 6)),
)
