import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_lightning.surgery.running.frames import calling_frame, suspend_in_children
from bn_lightning.surgery.running.owner_forward import OwnerForward


class Add:
    """An action that adds to what the nonlinearity receives and to what it returns."""

    def __init__(self, before: float, after: float) -> None:
        self._before, self._after = before, after

    def before(self, preactivation: Tensor) -> Tensor:
        return preactivation + self._before

    def after(self, activation: Tensor) -> Tensor:
        return activation + self._after


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(x)
        inner = self.child(x)
        return first + inner + F.relu(input=x)


def wrap(owner: nn.Module, actions) -> None:
    owner.forward = OwnerForward(owner, "", {"torch.nn.functional.relu": actions})
    suspend_in_children(owner)


def test_only_the_named_call_of_the_owners_own_code_is_acted_on():
    for index, expected in ((0, 10 + 1 + 1), (1, 1 + 1 + 10), (2, 3)):
        owner = Owner()
        wrap(owner, {index: [Add(8, 1)]})
        assert owner(torch.ones(1)).item() == expected


def test_stand_ins_stack_and_come_out_in_any_order():
    owner, x = Owner(), torch.ones(1)
    wrap(owner, {0: [Add(1, 0)]})
    inner = owner.forward
    wrap(owner, {0: [Add(0, 5)]})
    assert owner(x).item() == 2 + 5 + 2
    inner.restore()
    assert owner(x).item() == 1 + 5 + 2
    owner.forward.restore()
    assert "forward" not in vars(owner)
    assert owner(x).item() == 3


def test_each_thread_counts_for_itself():
    owner = Owner()
    wrap(owner, {1: [Add(8, 1)]})
    results: list[float] = []

    def run() -> None:
        results.extend(owner(torch.ones(1)).item() for _ in range(50))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [12.0] * 200


def test_a_forward_that_fails_closes_its_frame():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("fails inside a child")

    owner = Owner()
    owner.child.append(Failing())
    wrap(owner, {0: [Add(8, 1)]})
    with pytest.raises(RuntimeError, match="fails inside a child"):
        owner(torch.ones(1))
    assert calling_frame(owner) is None
    del owner.child[1]
    assert owner(torch.ones(1)).item() == 12
