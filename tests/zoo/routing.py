"""Control flow: which layers run depends on the data or on an argument."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, inputs


class Experts(nn.Module):
    """Each row goes to one expert; an expert may get no row, or a single one."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(5, 6), nn.Linear(6, count), nn.Linear(6, 2)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        weight, choice = self.router(x).softmax(1).max(1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (choice == index).nonzero()[:, 0]
            out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return self.head(out)


class EarlyExit(nn.Module):
    """Depth depends on the data; the example leaves after two of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)]), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for depth, block in enumerate(self.blocks):
            x = F.relu(block(x))
            if depth >= 1 and x.isfinite().all():
                break
        return self.head(x)


class Routed(nn.Module):
    """A word chooses the branch; the other branch is never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"left": nn.Linear(5, 6), "right": nn.Linear(5, 6)})
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, branch: str) -> Tensor:
        return self.head(F.celu(self.branches[branch](x)))


CASES = (
    Case(
        "experts",
        Experts,
        inputs((5,)),
        (("stem", "tanh"), *((f"experts.{index}.0", "relu") for index in range(4))),
        (6, 8, 8, 8, 8),
        few_values=True,
    ),
    Case(
        "early_exit",
        EarlyExit,
        inputs((5,)),
        (("blocks.0", "relu"), ("blocks.1", "relu")),
        (5, 5),
        fullgraph=False,
        exportable=False,
    ),
    Case(
        "routed",
        Routed,
        lambda batch: (*inputs((5,))(batch), "right"),
        (("branches.right", "celu"),),
        (6,),
    ),
)
