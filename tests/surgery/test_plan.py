import io
import json

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FunctionalMLP, FunctionalResidual
from function_model import Function
from torch import Tensor, nn

from bn_lightning.errors import NoSiteError, PlanMismatchError, UnknownNameError
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_planned_as_labelled_by_hand(case):
    plan = plan_insertion(case.make(), case.example())
    assert tuple(site.name for site in plan.inserted) == case.inserted
    assert tuple(site.channels for site in plan.inserted) == case.channels
    assert all(site.channel_dim_source == "traced" for site in plan.inserted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plan_survives_json(case):
    plan = plan_insertion(case.make(), case.example())
    assert InsertionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Function(lambda m, x: torch.sigmoid(m.a(x)), a=nn.Linear(4, 1)), (4,), "output head: no affine"),
        (Function(lambda m, x: F.softplus(m.a(x)), a=nn.Linear(4, 1)), (4,), "output head: the model's last"),
        (Function(lambda m, x: m.a(F.relu(x)), a=nn.Linear(4, 1)), (4,), "no affine layer"),
        (
            Function(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=nn.Linear(4, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 1)),
            (4,),
            "already normalised by batch_norm in 'n'",
        ),
        (
            Function(
                lambda m, x: m.b(F.relu(x + m.n(m.a(x)))), a=nn.Linear(4, 4), n=nn.LayerNorm(4), b=nn.Linear(4, 1)
            ),
            (4,),
            "already normalised by layer_norm in 'n'",
        ),
        (
            Function(lambda m, x: m.b(m.n(F.relu(m.a(x)))), a=nn.Linear(4, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 1)),
            (4,),
            "normalised right after by batch_norm in 'n'",
        ),
        (
            Function(lambda m, x: m.b(x * torch.sigmoid(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 1)),
            (4,),
            "a gate: its output is multiplied",
        ),
        (
            Function(lambda m, x: m.b((lambda h: h * h.sigmoid())(x + m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 1)),
            (4,),
            "one activation",
        ),
        (Function(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(2, 1)), (4,), "content and gate"),
    ],
    ids=[
        "sigmoid head",
        "last softplus",
        "raw input",
        "norm before",
        "norm in a sum",
        "norm after",
        "gate",
        "silu",
        "glu",
    ],
)
def test_a_site_where_no_norm_belongs_is_skipped_with_its_reason(model, shape, reason):
    plan = plan_insertion(model, (torch.randn(6, *shape),))
    assert [site.decision for site in plan.sites] == ["skip"]
    assert reason in plan.sites[0].reason


def test_a_recurrence_is_skipped_with_a_reason_that_names_the_way_out():
    def run(model, x):
        hidden = torch.zeros(x.shape[0], 4)
        for t in range(3):
            hidden = torch.tanh(model.inner(hidden) + model.outer(x[:, t]))
        return model.head(hidden)

    model = Function(run, inner=nn.Linear(4, 4), outer=nn.Linear(2, 4), head=nn.Linear(4, 1))
    plan = plan_insertion(model, (torch.randn(6, 3, 2),))
    assert len(plan.sites) == 3
    assert all("sequence-wise" in site.reason for site in plan.sites)


def test_an_activation_container_used_behind_several_layers_is_a_site_for_each_of_them():
    act = nn.Sequential(nn.ReLU(), nn.Dropout(0.1))
    model = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 16), act, nn.Linear(16, 2))
    plan = plan_insertion(model, (torch.randn(6, 4),))
    assert [(site.attach, site.layer, site.channels) for site in plan.inserted] == [
        ("producer", "0", 8),
        ("producer", "2", 16),
    ]
    behind = plan_insertion(model, (torch.randn(6, 4),), placement="after")
    assert "behind different layers (0, 2), whose statistics one norm would mix" in behind.sites[0].reason


def test_a_call_in_the_step_itself_is_reached_through_its_layer():
    class Stepper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 1)

        def step(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))

    (site,) = plan_insertion(Stepper(), (torch.randn(6, 4),), entry="step").inserted
    assert (site.attach, site.layer) == ("producer", "a")


def test_a_scaled_or_shifted_head_is_still_a_head():
    model = Function(lambda m, x: F.softplus(m.a(x)) + 1e-5, a=nn.Linear(4, 1))
    assert "output head" in plan_insertion(model, (torch.randn(6, 4),)).sites[0].reason


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrized_layer_is_known_by_its_own_name(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 1))
    plan = plan_insertion(model, (torch.randn(6, 4),))
    assert [(site.attach, site.layer) for site in plan.inserted] == [("producer", "0")]


@pytest.mark.parametrize(
    ("function", "axis", "source"),
    [
        (lambda m, x: torch.cat([m.c(x), m.d(x)], 1), -2, "traced"),
        (lambda m, x: torch.einsum("bcl,oc->bol", x, m.w), -2, "traced"),
        (lambda m, x: m.c(x).max(2)[0], -1, "traced"),
        (lambda m, x: torch.baddbmm(m.w, x.transpose(1, 2), m.w.expand(len(x), -1, -1)), -1, "traced"),
    ],
    ids=["cat", "einsum", "max", "baddbmm"],
)
def test_the_channel_axis_of_less_common_operations(function, axis, source):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 2, 3, padding=1)
            self.w = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (F.relu(function(self, x)) @ torch.ones(3, 1)).sum()

    site = plan_insertion(Model(), (torch.randn(3, 3, 3),)).sites[0]
    assert (site.channel_dim, site.channel_dim_source) == (axis, source)


def test_lazy_layers_are_named_before_anything_runs():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="The layers '0' are lazy and have no parameters yet; run the model"):
        plan_insertion(model, (torch.randn(6, 4),))


def test_a_layer_with_its_own_activation_is_not_hooked_behind_it():
    class Dense(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    plan = plan_insertion(nn.Sequential(Dense(4, 3), nn.Linear(3, 1)), (torch.randn(6, 4),))
    assert [(site.attach, site.owner) for site in plan.inserted] == [("call", "0")]


def test_the_channel_axis_is_followed_through_views():
    def run(model, x):
        heads = model.a(x).view(x.shape[0], 5, 2, 3).transpose(1, 2)  # (batch, heads, time, channels of a head)
        return model.b(F.relu(heads))

    model = Function(run, a=nn.Linear(4, 6), b=nn.Linear(3, 1))
    site = plan_insertion(model, (torch.randn(6, 5, 4),)).sites[0]
    assert (site.shape, site.channel_dim, site.channels) == ((6, 2, 5, 3), -1, 3)


def test_a_functional_weight_gives_the_layer_its_parameters_name():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(x @ self.kernel))

    site = plan_insertion(Functional(), (torch.randn(6, 4),)).inserted[0]
    assert (site.layer, site.attach, site.channels) == ("kernel", "call", 3)


def test_no_nonlinearity_at_all():
    with pytest.raises(NoSiteError, match=r"No nonlinearity was called when Sequential\.forward ran on the example"):
        plan_insertion(nn.Sequential(nn.Linear(2, 2)), (torch.randn(3, 2),))


def test_unknown_placement_norm_and_pattern():
    model, args = FunctionalMLP(), (torch.randn(3, 5),)
    with pytest.raises(UnknownNameError, match="placement is 'before' or 'after' the nonlinearity, not 'behind'"):
        plan_insertion(model, args, placement="behind")
    with pytest.raises(UnknownNameError, match="No norm is called 'btach'; the names are batch"):
        plan_insertion(model, args, norm="btach")
    with pytest.raises(
        UnknownNameError, match=r"No site matches 'decoder\.\*' of exclude; the model's sites are: relu_0, tanh_0"
    ):
        plan_insertion(model, args, exclude=["decoder.*"])


def test_args_is_a_tuple():
    with pytest.raises(TypeError, match=r"args is the tuple of positional arguments, such as \(x,\); got Tensor"):
        plan_insertion(FunctionalMLP(), torch.randn(3, 5))


def test_override_makes_a_new_plan():
    plan = plan_insertion(FunctionalResidual(), (torch.randn(3, 6),))
    changed = plan.override("gelu*", "skip")
    assert [site.name for site in changed.inserted] == ["relu_0"]
    assert len(plan.inserted) == 2
    assert changed.override("gelu_0", "insert").structure == plan.structure
    with pytest.raises(ValueError, match="A decision is 'insert' or 'skip', not 'maybe'"):
        plan.override("*", "maybe")


def test_nothing_can_be_attached_outside_a_forward():
    class Stepper(nn.Linear):
        def step(self, x: Tensor) -> Tensor:
            return (self(x).relu() @ torch.ones(3, 1)).sum()

    plan = plan_insertion(Stepper(4, 3), (torch.randn(6, 4),), entry="step")
    assert "outside every module's forward" in plan.sites[0].reason
    with pytest.raises(ValueError, match=r"Nothing can be attached at relu_0; see the reasons in plan.table\(\)"):
        plan.override("relu_0", "insert")


def test_a_plan_of_another_version_or_incomplete():
    data = plan_insertion(FunctionalMLP(), (torch.randn(3, 5),)).to_dict()
    with pytest.raises(PlanMismatchError, match="reads insertion plans of version 1 to 2, and found 99"):
        InsertionPlan.from_dict({**data, "version": 99})
    broken = {**data, "sites": [{"name": "relu_0"}]}
    with pytest.raises(PlanMismatchError, match="The insertion plan is incomplete"):
        InsertionPlan.from_dict(broken)


def test_an_error_of_the_model_says_what_was_going_on():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        plan_insertion(FunctionalMLP(), (torch.randn(3, 4),))
    assert "FunctionalMLP.forward ran on the example" in caught.value.__notes__[0]


def test_the_table_has_a_row_for_each_site_with_its_reason():
    from rich.console import Console

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
    plan = plan_insertion(model, (torch.randn(6, 4),))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan.table())
    text = console.export_text()
    assert "1 of 2 sites get a norm (batch, before)" in text
    assert "output head" in text
    assert "6×4" in text
