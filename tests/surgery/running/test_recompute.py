"""Gradient checkpointing: gradients as without it, and running statistics that move once a step."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from bn_lightning.errors import CheckpointedCallError, InsertionWarning
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.recompute import held_buffers

each_mode = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


class Block(nn.Module):
    """One site of each kind: behind a layer, a functional call, a shared activation module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.own, self.shared = nn.ELU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.own(self.a(x))) + x)
        x = self.shared(self.c(x) + x)
        return self.d(self.shared(x + self.c(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(4, 1)
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def insert(model: nn.Module, x: Tensor, **changes) -> InsertionPlan:
    plan = plan_insertion(model, (x,))
    for site in plan.sites:
        plan = plan.override(site.name, "insert")
    return apply_plan(model, replace(plan, **changes), norm=changes.pop("factory", None))


@each_mode
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms"])
def test_gradients_and_statistics_are_those_without_checkpointing(reentrant, norm):
    net, x = Net().double(), torch.randn(6, 4, dtype=torch.float64)
    plan = insert(net, x, norm=norm)
    assert {site.attach for site in plan.inserted} == {"producer", "call", "shared"}
    checkpointed = copy.deepcopy(net)
    checkpointed.reentrant = reentrant
    for step in range(3):
        batch = torch.randn(2 if step == 2 else 6, 4, dtype=torch.float64, requires_grad=True)
        context = (
            pytest.warns(InsertionWarning, match="received 2 values")
            if step == 2 and norm == "batch"
            else torch.enable_grad()
        )
        with context:  # two values a channel, once for each net
            checkpointed(batch).square().sum().backward()
            net(batch).square().sum().backward()
    for (name, found), expected in zip(checkpointed.named_parameters(), net.parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None, name
        else:
            torch.testing.assert_close(found.grad, expected.grad, msg=name)
    torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(net.named_buffers()))
    counts = [int(value) for name, value in checkpointed.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == ([3] * 8 if norm == "batch" else [])


@each_mode
def test_an_instance_norm_and_a_norm_within_a_factorys_module(reentrant):
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
            self.reentrant: bool | None = None

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)

    x = torch.randn(4, 2, 8, 8, requires_grad=True)
    for norm, options, factory in (
        ("instance", {"track_running_stats": True, "affine": True}, None),
        ("custom", {}, lambda channels: nn.Sequential(nn.BatchNorm2d(channels, momentum=None), nn.Identity())),
    ):
        net = Images()
        apply_plan(net, replace(plan_insertion(net, (x.detach(),)), norm=norm, norm_options=options), norm=factory)
        twin = copy.deepcopy(net)
        twin.reentrant = reentrant
        for _ in range(2):
            net(x).sum().backward()
            twin(x).sum().backward()
        buffers = dict(net.named_buffers())
        assert buffers
        torch.testing.assert_close(dict(twin.named_buffers()), buffers)
        torch.testing.assert_close(twin.body[0].weight.grad, net.body[0].weight.grad)


class Inside(nn.Module):
    """An owner that checkpoints a part of its own code."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.act = nn.ReLU() if shared else None
        self.reentrant: bool | None = None

    def part(self, x: Tensor) -> Tensor:
        x = self.a(x) + x
        return F.relu(x) if self.act is None else self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x) if self.reentrant is None else checkpoint(self.part, x, use_reentrant=self.reentrant)
        x = self.b(x) + x
        return self.head(F.relu(x) if self.act is None else self.act(x))


@pytest.mark.parametrize("shared", [True, False])
def test_checkpointing_switched_on_after_insertion_within_an_owner_is_refused(shared):
    net, x = Inside(shared), torch.randn(6, 4, requires_grad=True)
    plan = insert(net, x.detach())
    assert {site.attach for site in plan.inserted} == {"shared" if shared else "call"}
    net(x).sum().backward()
    net.reentrant = True
    with pytest.raises(
        CheckpointedCallError, match=r"The forward of 'the model' calls .* within torch.utils.checkpoint"
    ):
        net(x)
    net.reentrant = False
    with pytest.raises(CheckpointError, match="A different number of tensors was saved"):
        net(x).sum().backward()
    net.reentrant = None
    net(x).sum().backward()


def test_a_part_without_gradients_is_no_checkpoint():
    class Partly(Inside):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.part(x)
            return self.head(F.relu(self.b(x) + x))

    net = Partly(shared=False)
    insert(net, torch.randn(6, 4))
    net(torch.randn(6, 4)).sum().backward()


def test_held_buffers_come_back_after_a_failure():
    norm = nn.BatchNorm1d(3)
    own = dict(norm.named_buffers())
    with pytest.raises(ValueError, match="expected 2D"):
        run_held(norm, torch.randn(4, 3), torch.randn(3))
    assert all(value is own[name] for name, value in norm.named_buffers())
    assert int(norm.num_batches_tracked) == 0


def run_held(norm: nn.Module, *inputs: Tensor) -> None:
    with held_buffers(norm):
        for number, x in enumerate(inputs):
            norm(x)
            assert int(norm.num_batches_tracked) == number + 1


class Plain(Net):
    """Sites behind layers only: these need no frame, whose stack a compiled checkpoint may not change."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))


@pytest.mark.parametrize(("make", "fullgraph"), [(Net, False), (Plain, True)])
# Torch's own advice on what it does not compile.
@pytest.mark.filterwarnings("ignore:.*torch._dynamo:UserWarning")
def test_a_compiled_checkpoint_moves_the_statistics_once(make, fullgraph):
    net, x = make(), torch.randn(6, 4, requires_grad=True)
    insert(net, x.detach())
    checkpointed = copy.deepcopy(net)
    checkpointed.reentrant = False
    torch._dynamo.reset()
    torch.compile(checkpointed, backend="aot_eager", fullgraph=fullgraph)(x).square().sum().backward()
    net(x).square().sum().backward()
    torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(net.named_buffers()))
    expected = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    found = {name: parameter.grad for name, parameter in checkpointed.named_parameters() if name in expected}
    torch.testing.assert_close(found, expected)
