"""What insertion promises, on every model of the zoo."""

import copy
import io
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import ZOO
from zoo.case import Case, tensors_of
from zoo.disagreements import DISAGREEMENTS

from bn_lightning.errors import InsertionWarning, NoSiteError
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.carried import containers
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion

each_model = pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
each_insertable = pytest.mark.parametrize("case", [case for case in ZOO if case.inserted], ids=lambda case: case.name)


def run(case: Case, model: nn.Module, batch: int = 6) -> list[Tensor]:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        if case.few_values:
            warnings.simplefilter("ignore", InsertionWarning)
        output = model(*case.args(batch), **case.kwargs(batch))
    return tensors_of(output)


def plan_of_case(case: Case, model: nn.Module, **options: Any) -> InsertionPlan:
    return plan_insertion(model, case.args(6), case.kwargs(6), **options)


def insert(case: Case, model: nn.Module) -> InsertionPlan:
    return insert_batch_norm(model, case.args(6), case.kwargs(6))


def norms_of(model: nn.Module) -> Iterator[_BatchNorm]:
    return (module for name, module in model.named_modules() if "bn_lightning_norm." in name)  # type: ignore[misc]


def train(case: Case, model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = [value for value in run(case, model) if value.requires_grad]
        sum(value.abs().square().mean() for value in outputs).backward()
        optimizer.step()


def can_be_pickled(model: nn.Module) -> bool:
    """Parametrized modules cannot, says torch."""
    return not any(torch.nn.utils.parametrize.is_parametrized(module) for module in model.modules())


def assert_same(outputs: list[Tensor], expected: list[Tensor]) -> None:
    assert len(outputs) == len(expected) > 0
    for mine, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(mine, theirs)


def labels_met(case: Case) -> list[str]:
    """What of the hand-made labels the plan does not meet, in words; empty where it meets all."""
    model = case.build()
    plan = plan_of_case(case, model)
    parameters = {name for name, _ in model.named_parameters()}
    missed = []
    found = [(site.layer, site.op, site.channels) for site in plan.inserted]
    if len(found) != len(case.inserted):
        return [f"{len(case.inserted)} sites were expected, and the plan has {found}"]
    for (layer, op, channels), label, expected in zip(found, case.inserted, case.channels, strict=True):
        same_op = case.handwritten or op in label[1].split("|")
        # A weight that is no layer's has its own name in a plan.
        names = (layer, "") if layer in parameters else (layer,)
        if not set(names) & set(label[0].split("|")) or not same_op or channels != expected:
            missed.append(f"{label} with {expected} channels was expected, and found is {(layer, op, channels)}")
    for op, word in case.skipped:
        reasons = [site.reason for site in plan.skipped if case.handwritten or site.op in op.split("|")]
        if not any(part in reason for part in word.split("|") for reason in reasons):
            missed.append(f"{op} was expected to be skipped for {word!r}, and the reasons are {reasons}")
    return missed


def test_the_zoo_is_large_and_every_name_is_its_own():
    assert len(ZOO) >= 60
    assert len({case.name for case in ZOO}) == len(ZOO)


@each_model
def test_the_plan_is_that_of_the_labels(case):
    missed = labels_met(case)
    assert bool(missed) == (case.name in DISAGREEMENTS), missed


def test_decisions_agree_with_nearly_all_labels():
    decisions = sum(len(case.inserted) + len(case.skipped) for case in ZOO)
    missed = sum(len(labels_met(case)) for case in ZOO if case.name in DISAGREEMENTS)
    assert missed <= 0.02 * decisions


@each_model
def test_planning_leaves_no_trace(case):
    model = case.build()
    run(case, model)  # some models keep something of their last batch
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    args, kwargs = case.args(6), case.kwargs(6)
    torch.manual_seed(3)
    plan_insertion(model, args, kwargs)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(parameter.grad is None for parameter in model.parameters())
    for mine, fresh in zip(tensors_of((args, kwargs)), tensors_of((case.args(6), case.kwargs(6))), strict=True):
        assert torch.equal(mine, fresh)


@each_insertable
def test_with_identity_for_the_norm_outputs_are_those_of_the_original(case):
    model, changed = case.build(), case.build()
    plan = plan_of_case(case, changed, norm=lambda channels: nn.Identity())
    apply_plan(changed, plan, norm=lambda channels: nn.Identity())
    for training in (True, False):
        for batch in (6, 4):
            outputs = run(case, changed.train(training), batch)
            expected = run(case, model.train(training), batch)
            # A norm along the last axis may hand on another memory layout, in which the next convolution sums in
            # another order.
            torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


@each_insertable
def test_a_training_step_gives_every_norm_finite_gradients_and_keeps_the_original_keys(case):
    model = case.build()
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    insert(case, model)
    assert [key for key in model.state_dict() if "bn_lightning_norm" not in key] == keys
    assert [type(module) for name, module in model.named_modules() if "bn_lightning_norm" not in name] == types
    train(case, model.train(), steps=1)
    for host, container in containers(model):
        frozen = not any(parameter.requires_grad for parameter in host.parameters(recurse=False))
        for norm in container:
            # A part that this batch did not reach, as an expert without tokens, has no gradient.
            if int(norm.num_batches_tracked) and not (frozen and norm.weight.grad is None):
                assert norm.weight.grad.isfinite().all()
                assert norm.bias.grad.isfinite().all()
    assert any(int(norm.num_batches_tracked) for norm in norms_of(model))


@each_insertable
def test_copies_pickles_and_plans_carry_the_norms_to_another_model(case):
    model = case.build()
    plan = insert(case, model.train())
    train(case, model)
    expected = run(case, model.eval())
    assert_same(run(case, copy.deepcopy(model)), expected)
    if can_be_pickled(model):
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        assert_same(run(case, torch.load(buffer, weights_only=False)), expected)
    fresh = case.build()
    apply_plan(fresh, InsertionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))))
    fresh.load_state_dict(model.state_dict())
    assert_same(run(case, fresh.eval()), expected)


@each_insertable
def test_removal_gives_the_model_back(case):
    model, untouched = case.build(), case.build()
    run(case, untouched), run(case, model)
    state = copy.deepcopy(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    insert(case, model)
    remove_batch_norm(model)
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert_same(run(case, model.eval()), run(case, untouched.eval()))


@each_insertable
def test_removal_after_training_keeps_trained_weights_and_says_so(case):
    model = case.build()
    keys = list(model.state_dict())
    insert(case, model.train())
    train(case, model)
    trained = {name: value.clone() for name, value in model.state_dict().items() if "bn_lightning_norm" not in name}
    with pytest.warns(InsertionWarning, match="trained norms were removed"):
        remove_batch_norm(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(dict(model.state_dict()), trained, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case",
    [case for case in ZOO if not case.inserted and case.name not in DISAGREEMENTS],
    ids=lambda case: case.name,
)
def test_a_model_without_a_place_for_a_norm_is_refused_with_the_reasons(case):
    model = case.build()
    with pytest.raises(NoSiteError, match=r"Its sites were skipped|No nonlinearity was called"):
        insert(case, model)
    assert not list(norms_of(model))
