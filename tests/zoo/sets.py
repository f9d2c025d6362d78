"""Mixers, sets, graphs and pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import HEAD, Case, inputs

TOKENS = inputs((4, 6))


class Mixer(nn.Module):
    """One perceptron mixes tokens, where the tokens are the channels of its layers, one mixes features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.features = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norm2(x))


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU(), nn.Conv1d(5, 8, 1), nn.ReLU())
        self.cloud = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.cloud(self.point(x.transpose(1, 2)).amax(2))


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.element, self.set, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.set(torch.tanh(self.element(x)).sum(1))))


class BatchIsTheSet(DeepSets):
    """The sum runs over the batch, so one row is left, whatever the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.set(torch.tanh(self.element(x)).mean((0, 1))[None])))


class GraphConv(nn.Module):
    """Two ways to write a layer on a graph; the rows are nodes, the adjacency is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(6, 5) / 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.first(x))
        return self.head(F.relu(adjacency @ x @ self.weight))


class Siamese(nn.Module):
    """One tower for two inputs: its sites are passed twice. The last relu belongs to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        distance = (self.tower(left) - self.tower(right)).square().sum(1)
        return F.relu(1 - distance).mean()


def graph(batch: int) -> tuple[Tensor, Tensor]:
    (x,) = inputs((4,))(batch)
    ring = torch.eye(batch) + torch.roll(torch.eye(batch), 1, 0)
    return x, ring / 2


CASES = (
    Case("mixer", Mixer, TOKENS, (("tokens.0", "gelu"), ("features.0", "gelu")), (7, 9)),
    Case(
        "point_net",
        PointNet,
        inputs((9, 3)),
        (("point.0", "relu"), ("point.2", "relu"), ("cloud.0", "relu")),
        (5, 8, 6),
    ),
    Case("deep_sets", DeepSets, inputs((7, 3)), (("element", "tanh"), ("set", "relu")), (6, 5)),
    # Nothing in one example tells the lone row from an expert that happened to get one.
    Case(
        "batch_is_the_set",
        BatchIsTheSet,
        inputs((7, 3)),
        (("element", "tanh"), ("set", "relu")),
        (6, 5),
        few_values=True,
    ),
    Case("graph_conv", GraphConv, graph, (("first", "relu"), ("", "relu")), (6, 5)),
    Case(
        "siamese",
        Siamese,
        inputs((5,), (5,)),
        (("tower.0", "relu"), ("tower.2", "tanh")),
        (7, 6),
        (("relu", HEAD),),
    ),
)
