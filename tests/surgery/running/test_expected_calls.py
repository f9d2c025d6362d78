"""What the user is told where a forward makes other calls than the example that it was planned with."""

import copy
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from function_model import Function
from torch import Tensor, nn

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.planning import plan_insertion

X = torch.randn(6, 4)


class Moody(nn.Module):
    """Two sites on sums, by function or by one activation module; `extra` and `skip` change the path."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.act = nn.ReLU() if shared else None
        self.skip = False
        self.extra = None

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.act is None else self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.skip:
            x = self.activate(self.a(x) + x)
        x = self.activate(self.b(x) + x)
        return self.head(x if self.extra is None else self.extra(x))


def planned(model: nn.Module, **changes) -> nn.Module:
    plan = plan_insertion(model, (X,))
    apply_plan(model, replace(plan, **changes))
    return model


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("change", ["fewer", "more"])
def test_another_number_of_calls_is_warned_of_once(shared, change):
    model = planned(Moody(shared=shared))
    model(X)
    model.skip, model.extra = change == "fewer", model.activate if change == "more" else None
    name = "act" if shared else "torch.nn.functional.relu"
    count = 1 if change == "fewer" else 3
    with pytest.warns(InsertionWarning, match=f"The forward of the model called {name} {count} times, and 2 times on"):
        model(X)
    assert_silent(model)


def assert_silent(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)


def test_of_several_examples_one_may_well_make_fewer_calls_but_none_more():
    model = planned(Moody(), num_examples=2)
    model.skip = True
    assert_silent(model)
    model.skip, model.extra = False, F.relu
    with pytest.warns(InsertionWarning, match="3 times, and 2 times"):
        model(X)


@pytest.mark.parametrize("function", [F.gelu, torch.tanh, torch.Tensor.sigmoid_])
def test_a_nonlinearity_that_no_site_names_is_warned_of_once(function):
    model = planned(Moody())
    model(X)
    model.extra = function
    with pytest.warns(InsertionWarning, match=rf"called torch.*{function.__name__}, which it did not on the example"):
        model(X)
    assert_silent(model)


def test_a_nonlinearity_that_a_skipped_site_names_is_not():
    class Ends(Moody):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(x))

    model = planned(Ends())
    assert_silent(model)
    model.extra = torch.sigmoid
    assert_silent(model)


def test_what_a_child_calls_is_not_the_owners():
    model = Moody()
    model.other = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    planned(model)
    model.extra = model.other
    assert_silent(model)


def test_functions_that_are_a_nonlinearity_in_some_uses_only_are_not_counted():
    model = planned(Moody())
    model.extra = lambda x: torch.clamp(x, -1, 1) + torch.maximum(x, -x)
    assert_silent(model)


def test_copies_warn_for_themselves_and_know_what_was_planned():
    model = planned(Moody())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.skip = True
        with pytest.warns(InsertionWarning, match="1 times, and 2 times"):
            twin(X)
    model.skip = True
    with pytest.warns(InsertionWarning, match="1 times, and 2 times"):
        model(X)


def test_a_compiled_model_runs_other_paths_without_a_graph_break():
    model = planned(Moody())
    model.extra = torch.tanh
    torch._dynamo.reset()
    torch.compile(model, backend="eager", fullgraph=True)(X)


def test_a_layer_that_is_passed_twice_behind_a_site_is_no_surprise():
    def run(model, x: Tensor) -> Tensor:
        h = F.relu(model.a(x) + x)
        return model.head(F.relu(model.b(h)) + F.relu(model.b(-h)))

    model = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), head=nn.Linear(4, 1))
    plan = plan_insertion(model, (X,))
    assert [(site.attach, site.visits) for site in plan.inserted] == [("call", 1), ("producer", 2)]
    apply_plan(model, plan)
    assert_silent(model)


def test_a_nonlinearity_with_norms_on_its_branches_is_no_surprise():
    def run(model, x: Tensor) -> Tensor:
        h = torch.relu(F.max_pool1d(model.a(x), 1) * 2 + x)
        return model.head(torch.tanh(model.b(h.square()) + x))

    model = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), head=nn.Linear(4, 1))
    plan = plan_insertion(model, (X,), site="affine")
    assert [(site.name, site.reason) for site in plan.skipped] == [("tanh_0", "normalised on its branches, b")]
    apply_plan(model, plan)
    assert_silent(model)


class Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x) + torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * ((x > 0) + 1 - torch.tanh(x) ** 2)


@pytest.mark.parametrize("gradients", [True, False])
def test_calls_within_an_autograd_function_are_no_surprise(gradients):
    def run(model, x: Tensor) -> Tensor:
        h = Rectify.apply(F.relu(Rectify.apply(model.a(x)) + model.b(x)))
        return model.head(Rectify.apply(h))

    model = Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), head=nn.Linear(4, 1))
    (site,) = apply_plan(model, plan_insertion(model, (X,))).inserted
    assert (site.attach, site.call_index) == ("call", 1)
    with torch.set_grad_enabled(gradients):
        assert_silent(model)
