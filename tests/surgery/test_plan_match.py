from dataclasses import replace

import pytest
import torch
from cases import FunctionalMLP, ResidualNet
from torch import nn

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.planning import plan_insertion

X = torch.randn(6, 5)
PLAN = replace(plan_insertion(FunctionalMLP(), (X,)), model="FunctionalMLP")


def test_a_plan_for_another_class_is_refused():
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

        def forward(self, x):
            return FunctionalMLP.forward(self, x)

    model = Renamed()
    message = r"made for FunctionalMLP, and this model is Renamed.*replace\(plan, model='Renamed'\)"
    with pytest.raises(PlanMismatchError, match=message):
        apply_plan(model, PLAN)
    assert len(list(model.modules())) == 4
    apply_plan(model, replace(PLAN, model="Renamed"))
    assert len(apply_plan(Renamed(), replace(PLAN, model="")).inserted) == 2  # a plan of an older release


def test_a_plan_fits_subclasses():
    class Child(FunctionalMLP):
        pass

    assert apply_plan(Child(), PLAN) is PLAN


def test_modules_that_are_missing_are_named():
    plan = replace(plan_insertion(ResidualNet(), (torch.randn(4, 3, 8, 8),)), model="")
    with pytest.raises(PlanMismatchError, match=r"FunctionalMLP does not have: blocks\.0, "):
        apply_plan(FunctionalMLP(), plan)


@pytest.mark.parametrize("attach", ["producer", "input"])
def test_other_channels_are_named_with_both_numbers(attach):
    model = FunctionalMLP()
    model.second = nn.Linear(7, 9) if attach == "producer" else nn.Linear(8, 6)
    plan = replace(
        PLAN, sites=tuple(replace(site, attach=attach, channels=7 - (attach == "producer")) for site in PLAN.sites[1:])
    )
    numbers = (6, 9) if attach == "producer" else (7, 8)
    message = rf"The plan has {numbers[0]} channels at 'tanh_0', and the layer 'second' .* has {numbers[1]}"
    with pytest.raises(PlanMismatchError, match=message):
        apply_plan(model, plan)
    assert "bn_lightning_norm" not in dict(model.second.named_children())


class Trunk(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.act, self.head = trunk, nn.ReLU(), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.act(self.trunk(x)))


def test_two_models_with_one_trunk_cannot_both_have_norms():
    trunk = FunctionalMLP()
    one, other = Trunk(trunk), Trunk(trunk)
    plan = plan_insertion(one, (X,))
    apply_plan(one, plan)
    message = r"Trunk shares modules with another model that norms were inserted into: trunk.first, trunk.second"
    with pytest.raises(PlanMismatchError, match=message):
        apply_plan(other, plan)
    with pytest.raises(PlanMismatchError, match="FunctionalMLP shares modules with another model"):
        apply_plan(trunk, PLAN)
    remove_batch_norm(one)
    apply_plan(other, plan)
    assert len(other.trunk.first.bn_lightning_norm) == 1
