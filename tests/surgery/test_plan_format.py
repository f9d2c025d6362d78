import copy
import json

import pytest
import torch
from cases import FunctionalResidual
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.errors import NormOptionError, NoSiteError, PlanMismatchError, UnknownNameError
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion

WRITTEN = plan_insertion(FunctionalResidual(), (torch.randn(4, 6),), inputs=True).to_dict()
PLACES = [(name,) for name in WRITTEN] + [
    ("sites", number, name) for number, site in enumerate(WRITTEN["sites"]) for name in site
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["", "relu", "batch", "insert"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def changed(place: tuple, value) -> dict:
    data = copy.deepcopy(WRITTEN)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PLACES), JSON)
def test_a_plan_with_any_value_changed_is_refused_or_can_be_carried_out(place, value):
    try:
        plan = InsertionPlan.from_dict(changed(place, value))
    except PlanMismatchError:
        return
    assert InsertionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    try:
        apply_plan(FunctionalResidual(), plan)
    except (PlanMismatchError, UnknownNameError, NormOptionError, NoSiteError):
        return


@settings(deadline=None)
@given(JSON)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(PlanMismatchError):
        InsertionPlan.from_dict(data)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("version",), True, "version 1 to 2, and found True"),
        (("sites",), {}, "plan is incomplete"),
        (("sites", 0), "relu", "site 0 is 'relu' and should be values by name"),
        (("sites", 0), {}, "plan is incomplete"),
        (("placement",), "beside", "in the plan, placement is 'beside' and should be 'before' or 'after'"),
        (("num_examples",), 0, "num_examples is 0 and should be a whole number from 1 on"),
        (("norm_options",), ["eps"], r"norm_options is \['eps'\] and should be values by name"),
        (("norm",), None, "norm is None and should be text"),
        (("sites", 0, "shape"), [4, "6"], r"in site 0, shape is \[4, '6'\] and should be a list of sizes"),
        (("sites", 0, "channels"), -1, "channels is -1 and should be a whole number from 0 on"),
        (("sites", 0, "channels"), 0, r"has 0 channels, and shape \(4, 6\) with axis -1"),
        (("sites", 0, "channel_dim"), 1, r"has channel_dim 1 and shape \(4, 6\)"),
        (("sites", 0, "layer"), "", "is attached by 'input' and names no layer"),
        (("sites", 0, "name"), WRITTEN["sites"][1]["name"], "two sites are called"),
    ],
)
def test_the_message_says_what_was_found_and_what_should_be(place, value, message):
    with pytest.raises(PlanMismatchError, match=message):
        InsertionPlan.from_dict(changed(place, value))


def test_a_function_that_is_no_nonlinearity_is_named():
    number = next(number for number, site in enumerate(WRITTEN["sites"]) if site["attach"] == "call")
    plan = InsertionPlan.from_dict(changed(("sites", number, "function"), "torch.nn.functional.later"))
    with pytest.raises(PlanMismatchError, match=r"calls of torch.nn.functional.later, which this release"):
        apply_plan(FunctionalResidual(), plan)
