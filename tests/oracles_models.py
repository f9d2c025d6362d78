"""Nets with batch norm written out by hand, to hold inserted norms against."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HandWritten(nn.Module):
    def __init__(self, kind: str, placement: Literal["before", "after"] | None) -> None:
        super().__init__()
        self.kind, self.placement = kind, placement
        if kind == "mlp":
            self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)
            norms = [nn.BatchNorm1d(7), nn.BatchNorm1d(6)]
        else:
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 2, 1)
            norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
        self.norms = nn.ModuleList(norms if placement else [])

    def example(self) -> Tensor:
        return torch.randn(8, 5) if self.kind == "mlp" else torch.randn(8, 4, 6, 6)

    def _activate(self, x: Tensor, number: int) -> Tensor:
        if self.placement == "before":
            x = self.norms[number](x)
        x = F.relu(x)
        return self.norms[number](x) if self.placement == "after" else x

    def forward(self, x: Tensor) -> Tensor:
        hidden = self._activate(self.first(x), 0)
        hidden = self.second(hidden)
        if self.kind == "residual":
            hidden = hidden + x
        return self.head(self._activate(hidden, 1))
