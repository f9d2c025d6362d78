import json
from pathlib import Path

import pytest
import torch
from cases import ResidualNet

from bn_lightning.errors import PlanMismatchError
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.plan import PLAN_VERSION, InsertionPlan
from bn_lightning.surgery.planning import plan_insertion

WRITTEN = sorted((Path(__file__).parent / "plans").glob("version_*.json"))


def current() -> InsertionPlan:
    return plan_insertion(ResidualNet(), (torch.randn(4, 3, 8, 8),))


def test_there_is_a_written_plan_of_every_version():
    assert [path.stem for path in WRITTEN] == [f"version_{number}" for number in range(1, PLAN_VERSION + 1)]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_plan_that_an_earlier_release_wrote_makes_the_same_model(path):
    plan = InsertionPlan.from_dict(json.loads(path.read_text()))
    assert plan.structure == current().structure
    model = ResidualNet()
    assert apply_plan(model, plan) == plan
    norms = [name for name in model.state_dict() if name.endswith("bn_lightning_norm.0.running_var")]
    assert len(norms) == 5


def test_a_plan_of_a_later_release_is_refused():
    with pytest.raises(PlanMismatchError, match=f"version 1 to {PLAN_VERSION}, and found {PLAN_VERSION + 1}"):
        InsertionPlan.from_dict({**current().to_dict(), "version": PLAN_VERSION + 1})


@pytest.mark.parametrize("missing", ["placement", "norm_options", "bias", "sites"])
def test_a_plan_that_lacks_a_setting_is_refused(missing):
    data = current().to_dict()
    del data[missing]
    with pytest.raises(PlanMismatchError, match="incomplete"):
        InsertionPlan.from_dict(data)


def test_a_plan_that_lacks_a_field_of_a_site_is_refused():
    data = current().to_dict()
    del data["sites"][0]["channels"]
    with pytest.raises(PlanMismatchError, match="incomplete"):
        InsertionPlan.from_dict(data)
