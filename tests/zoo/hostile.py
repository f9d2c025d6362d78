"""Shared modules, side effects and odd containers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import NO_AFFINE, Case, inputs


class ResidualSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Collecting(nn.Sequential):
    """Walks its own children and keeps what each one makes."""

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self:
            x = layer(x)
            outputs.append(x)
        return outputs


class ShiftsItsInput(nn.Module):
    """Changes the caller's tensor in place before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5).add_(1.0)
        return self.head(F.relu(self.first(x)))


class Checkpointed(nn.Module):
    """The first block runs again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.2), nn.Linear(7, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


class OneActivation(nn.Module):
    """One in-place relu serves every site, in modules that do not own it."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 5, 3), act)
        self.tail = nn.Sequential(nn.Linear(5, 6), act, nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x).mean((2, 3)))


class TwoInARow(nn.Module):
    """A second activation right behind the first has no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.dropout(F.relu(self.first(x)), 0.1, self.training)))


class Stateful(nn.Module):
    """Counts its calls in a plain attribute and a buffer, and caches an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.calls, self.cached = nn.Linear(5, 6), nn.Linear(6, 2), 0, None
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.training:
            self.seen += len(x)
        hidden = F.relu(self.first(x))
        self.cached = hidden.detach()
        return self.head(hidden)


class NestedOutputs(nn.Module):
    """Variable arguments in, nested containers and numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(5, 6), nn.Linear(4, 6)]), nn.Linear(6, 2)

    def forward(self, *tensors: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, object]]:
        hidden = [F.mish(layer(x)) for layer, x in zip(self.layers, tensors, strict=True)]
        return self.head(scale * sum(hidden)), {"hidden": hidden, "count": len(hidden), "nothing": None}


class Detached(nn.Module):
    """Part of the forward runs without gradients, as a target network does."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        self.target = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target(x)
        return F.mse_loss(self.online(x), target)


def residual_sequential() -> nn.Module:
    block = ResidualSequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), block, nn.Linear(6, 2))


def collecting() -> nn.Module:
    return Collecting(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2))


CASES = (
    Case("sequential_subclass", residual_sequential, inputs((5,)), (("0", "relu"), ("2.0", "gelu")), (6, 8)),
    Case("collecting_sequential", collecting, inputs((5,)), (("0", "relu"), ("2", "tanh")), (7, 6)),
    Case("changes_its_input", ShiftsItsInput, inputs((5,)), (("first", "relu"),), (6,)),
    Case(
        "checkpointed",
        Checkpointed,
        inputs((5,)),
        (("block.0", "relu"), ("block.3", "tanh")),
        (7, 6),
        random=True,
    ),
    Case(
        "one_activation_everywhere",
        OneActivation,
        inputs((3, 8, 8)),
        (("body.0", "relu"), ("body.2", "relu"), ("tail.0", "relu")),
        (4, 5, 6),
    ),
    Case("two_in_a_row", TwoInARow, inputs((5,)), (("first", "relu"),), (6,), (("tanh", NO_AFFINE),), random=True),
    Case("stateful", Stateful, inputs((5,)), (("first", "relu"),), (6,)),
    Case(
        "nested_outputs",
        NestedOutputs,
        inputs((5,), (4,)),
        (("layers.0", "mish"), ("layers.1", "mish")),
        (6, 6),
        kwargs=lambda batch: {"scale": 0.5},
    ),
    Case("detached_target", Detached, inputs((5,)), (("target.0", "relu"), ("online.0", "relu")), (6, 6)),
)
