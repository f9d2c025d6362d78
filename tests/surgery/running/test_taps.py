import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FunctionalMLP, ResidualNet
from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.attach import remove_batch_norm
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations


def record(model: nn.Module, args: tuple) -> list[tuple[str, int, torch.Tensor, int]]:
    seen = []
    sites = plan_insertion(model, args).sites
    with tap_preactivations(model, sites, lambda layer, i, x, axis: seen.append((layer, i, x.detach().clone(), axis))):
        model(*args)
    return seen


@pytest.mark.parametrize("placement", [None, "before", "after"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_site_is_handed_over_once_a_visit_and_nothing_stays_behind(case, placement):
    model = case.make()
    if placement:
        insert_batch_norm(model, case.example(), placement=placement)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    forwards = [vars(m).get("forward") for m in model.modules()]
    torch.manual_seed(0)
    expected = copy.deepcopy(model)(*case.example())
    torch.manual_seed(0)
    seen = record(model, case.example())
    visits = [site.visits for site in plan_insertion(model, case.example()).sites]
    counted = [sum(1 for entry in seen if entry[1] == i) for i in range(len(visits))]
    assert counted == visits
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert forwards == [vars(m).get("forward") for m in model.modules()]
    assert expected.shape == model(*case.example()).shape


def test_the_tensors_are_what_the_nonlinearities_receive():
    torch.manual_seed(0)
    model, x = FunctionalMLP(), torch.randn(6, 5)
    (first, second) = record(model, (x,))
    z1 = model.first(x)
    z2 = model.second(F.relu(z1))
    assert (first[0], second[0]) == ("first", "second")
    assert torch.equal(first[2], z1)
    assert torch.equal(second[2], z2)
    assert (first[3], second[3]) == (-1, -1)


def test_layer_names_are_the_same_in_every_arm_and_norms_before_show_in_the_values():
    torch.manual_seed(0)
    plain, x = ResidualNet(), torch.randn(8, 3, 8, 8)
    layers = {}
    for placement in (None, "before", "after"):
        model = copy.deepcopy(plain)
        if placement:
            insert_batch_norm(model, (x,), placement=placement)
        seen = record(model, (x,))
        layers[placement] = [layer for layer, *_ in seen]
        if placement == "before":
            for _, _, value, _ in seen:
                torch.testing.assert_close(value.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)  # float32 sums
    assert layers[None] == layers["before"] == layers["after"]
    assert layers[None] == ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_norms_can_be_removed_under_taps(placement):
    model, x = ResidualNet(), torch.randn(4, 3, 8, 8)
    insert_batch_norm(model, (x,), placement=placement)
    seen = []
    taps = tap_preactivations(model, plan_insertion(model, (x,)).sites, lambda layer, *_: seen.append(layer))
    remove_batch_norm(model)
    model(x)
    assert len(seen) == 5
    taps.remove()
    taps.remove()
    model(x)
    assert len(seen) == 5
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_site_of_another_model_leaves_no_hook():
    sites = plan_insertion(ResidualNet(), (torch.randn(4, 3, 8, 8),)).sites
    model = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(PlanMismatchError, match="Sequential has no module 'stem'"):
        tap_preactivations(model, sites, print)
    assert not model[0]._forward_hooks


def test_taps_compile_without_a_graph_break():
    model, x = FunctionalMLP(), torch.randn(6, 5)
    sums = torch.zeros(2)

    def receive(layer, index, value, axis):
        sums[index] += value.detach().mean()

    sites = plan_insertion(model, (x,)).sites
    with tap_preactivations(model, sites, receive), warnings.catch_warnings():
        torch._dynamo.reset()
        torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(sums[0], model.first(x).mean().detach())
