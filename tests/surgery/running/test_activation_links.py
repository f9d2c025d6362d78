import copy
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, FunctionalMLP, FunctionalResidual, ResidualNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.activation_links import ActivationLink
from bn_lightning.surgery.running.taps import activation_is_visible, tap_preactivations
from bn_lightning.surgery.tracing.ops import NONLINEARITIES


class Spread(nn.Module):
    """Nonlinearities in every spelling, some shared: a loop, keywords, in place, a block called behind two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.fourth, self.bend = nn.Linear(4, 4), Bend()
        self.act, self.head = nn.ELU(inplace=True), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(2):
            x = F.relu(self.first(x)) + 0.5
            x = F.relu(input=self.second(x), inplace=True)
        x = self.bend(self.third(x)) + self.bend(self.fourth(x))
        x = self.act(self.head.weight.sum() + x)
        return self.head(torch.tanh_(x + self.act(self.first(x) + x)))


class Bend(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.sigmoid(x)


def record_both(model, args, sites):
    """What each site received and returned, in the order of the calls."""
    seen = {}

    def keep(kind):
        return lambda layer, i, x, axis: seen.setdefault(i, []).append((kind, layer, axis, x.detach().clone()))

    with tap_preactivations(model, sites, keep("received"), receive_activation=keep("returned")):
        model(*args)
    return seen


@pytest.mark.parametrize("placement", [None, "before", "after"])
@pytest.mark.parametrize("case", [*CASES, Case("spread", Spread, (4,), (), ())], ids=lambda case: case.name)
def test_activations_are_what_the_nonlinearity_makes_of_each_pre_activation(case, placement):
    torch.manual_seed(0)
    model = case.make()
    plain = copy.deepcopy(model)
    if placement:
        insert_batch_norm(model, case.example(), placement=placement)
    sites = plan_insertion(model, case.example()).sites
    seen = record_both(model, case.example(), sites)
    assert all(map(activation_is_visible, sites))
    for position, site in enumerate(sites):
        kinds = [kind for kind, *_ in seen[position]]
        assert kinds == ["received", "returned"] * site.visits, site.name
        bend = plain.get_submodule(site.activation) if site.activation else NONLINEARITIES[site.function]
        for before, after in zip(seen[position][::2], seen[position][1::2], strict=True):
            assert before[1:3] == after[1:3] == (site.layer, site.channel_dim)
            assert torch.equal(bend(before[3].clone()), after[3]), site.name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


def test_a_loop_hands_over_each_turn():
    model = Spread()
    seen = record_both(model, (torch.randn(3, 4),), plan_insertion(model, (torch.randn(3, 4),)).sites)
    layers = [entry[1] for entries in seen.values() for entry in entries if entry[0] == "returned"]
    assert layers.count("second") == 2
    assert {"third", "fourth"} < set(layers)


def test_branches_inputs_and_spelled_out_activations_hand_over_the_pre_activation_alone():
    class Spelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            return self.second(torch.where(x > 0, x, 0.0))

    model, x = Spelled(), torch.randn(5, 4)
    seen = record_both(model, (x,), plan_insertion(model, (x,), inputs=True).sites)
    assert [[kind for kind, *_ in entries] for entries in seen.values()] == [["received"]] * 2
    model, x = ResidualNet(), torch.randn(2, 3, 8, 8)
    sites = plan_insertion(model, (x,), site="affine").sites
    branches = [site for site in sites if site.reason.startswith("on the output of")]
    assert branches
    assert not any(map(activation_is_visible, branches))


def test_two_taps_on_one_model_see_the_same():
    torch.manual_seed(0)
    model, x = FunctionalResidual(), torch.randn(6, 6)
    insert_batch_norm(model, (x,))
    sites = plan_insertion(model, (x,)).sites
    alone = record_both(model, (x,), sites)
    with tap_preactivations(model, sites, lambda *_: None, receive_activation=lambda *_: None):
        beside = record_both(model, (x,), sites)
    assert {i: [kind for kind, *_ in entries] for i, entries in beside.items()} == {
        i: ["received", "returned"] for i in range(len(sites))
    }
    assert alone.keys() == beside.keys()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_activations_come_again_with_the_recomputation(use_reentrant):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return F.relu(self.fc(x))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = Block(), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(checkpoint(self.block, x, use_reentrant=use_reentrant))

    model, x = Checkpointed(), torch.randn(5, 4, requires_grad=True)
    kinds = []
    sites = plan_insertion(model, (x,)).sites
    with tap_preactivations(
        model, sites, lambda *_: kinds.append("received"), receive_activation=lambda *_: kinds.append("returned")
    ):
        model(x).sum().backward()
    # A checkpoint that is not reentrant stops its recomputation with the last tensor it needs.
    assert kinds[:3] == ["received", "returned", "received"]
    assert len(kinds) == 4 or not use_reentrant


def test_an_activation_that_nothing_takes_is_not_kept_alive():
    released = []
    link = ActivationLink(released.append)
    x = torch.randn(3)
    link.expect(x)
    gone = weakref.ref(x)
    del x
    assert gone() is None
    assert not link.takes(torch.randn(3))


def test_a_copy_of_a_tapped_model_runs_untapped_functions():
    model, x = FunctionalMLP(), torch.randn(6, 5)
    seen = []
    with tap_preactivations(
        model, plan_insertion(model, (x,)).sites, lambda *_: None, receive_activation=lambda *_: seen.append(1)
    ):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x))
    assert len(seen) == 2
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "user_mish"], ids=lambda case: case.name)
def test_activations_compile_without_a_graph_break(case):
    torch.manual_seed(0)
    model = case.make()
    model.eval()
    (x,) = case.example()
    sites = plan_insertion(model, (x,)).sites
    sums = torch.zeros(2, len(sites), dtype=torch.float64)

    def receive(kind):
        def add(layer, index, value, axis):
            sums[kind, index] += value.detach().double().mean()

        return add

    with tap_preactivations(model, sites, receive(0), receive_activation=receive(1)), warnings.catch_warnings():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        found = []
        for _ in range(2):
            sums.zero_()
            compiled(x)
            found.append(sums.clone())
        sums.zero_()
        model(x)
    torch.testing.assert_close(found[0], sums)
    torch.testing.assert_close(found[1], sums)
    assert (sums != 0).all()
