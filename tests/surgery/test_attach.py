import copy
import io
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FunctionalMLP, FunctionalResidual, ResidualBlock, ResidualNet
from oracles_models import HandWritten
from torch import Tensor, nn

from bn_lightning.errors import InsertionWarning, NoEffectWarning, NormOptionError, NoSiteError, PlanMismatchError
from bn_lightning.surgery.attach import apply_plan, remove_batch_norm
from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan import InsertionPlan
from bn_lightning.surgery.planning import plan_insertion

PLACEMENTS = ("before", "after")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_placement = pytest.mark.parametrize("placement", PLACEMENTS)


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if "bn_lightning_norm." in name]


def hook_counts(model: nn.Module) -> list[tuple[int, int, int]]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called)) for m in model.modules()
    ]


@each_case
@each_placement
def test_with_identity_for_the_norm_outputs_are_those_of_the_original(case, placement):
    model = case.make()
    changed = copy.deepcopy(model)
    plan = plan_insertion(changed, case.example(), placement=placement, norm=lambda channels: nn.Identity())
    apply_plan(changed, plan, norm=lambda channels: nn.Identity())
    assert len(norms_of(changed)) == len(plan.inserted)
    for training in (True, False):
        for batch in (6, 3):
            torch.manual_seed(0)
            expected = model.train(training)(*case.example(batch))
            torch.manual_seed(0)
            assert torch.equal(changed.train(training)(*case.example(batch)), expected)


@each_case
@each_placement
def test_each_norm_sees_each_visit_and_normalises_its_own_channels(case, placement):
    model = case.make()
    plan = insert_batch_norm(model, case.example(), placement=placement)
    model(*case.example(16))
    for site in plan.inserted:
        assert site.visits >= 1
    assert sorted(int(norm.num_batches_tracked) for norm in norms_of(model)) == sorted(
        site.visits for site in plan.inserted
    )
    assert sorted(norm.num_features for norm in norms_of(model)) == sorted(site.channels for site in plan.inserted)


@each_case
@each_placement
def test_a_training_step_gives_finite_gradients_and_keeps_the_original_keys(case, placement):
    model = case.make()
    keys = set(model.state_dict())
    insert_batch_norm(model, case.example(), placement=placement)
    assert keys <= set(model.state_dict())
    model(*case.example()).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@each_case
@each_placement
def test_removal_right_after_insertion_gives_everything_back_to_the_bit(case, placement):
    model = case.make()
    state, hooks = copy.deepcopy(model.state_dict()), hook_counts(model)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    expected = model.eval()(*case.example())
    model.train()
    plan = insert_batch_norm(model, case.example(), placement=placement)
    assert remove_batch_norm(model) == plan
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert hook_counts(model) == hooks
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(model.eval()(*case.example()), expected)
    assert plan_of(model) is None


@each_case
@each_placement
def test_a_plan_rebuilds_the_structure_of_a_fresh_model_without_data(case, placement):
    model = case.make()
    plan = insert_batch_norm(model, case.example(), placement=placement)
    model(*case.example(12))
    fresh = case.make()
    apply_plan(fresh, plan)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(*case.example()), model.eval()(*case.example()))


@each_case
@each_placement
def test_copies_and_pickles_work_and_are_independent(case, placement):
    model = case.make()
    insert_batch_norm(model, case.example(), placement=placement)
    model(*case.example(8))
    seen = [int(norm.num_batches_tracked) for norm in norms_of(model)]
    twin = copy.deepcopy(model)
    twin(*case.example(8))
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == seen
    assert [int(norm.num_batches_tracked) for norm in norms_of(twin)] == [2 * count for count in seen]
    if case.name.startswith(("conv", "mlp", "pool", "user")) and isinstance(model, nn.Sequential):
        return  # their factories are lambdas in a container, pickled below by the others
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.eval()(*case.example()), model.eval()(*case.example()))
    if plan_of(model) is not None:
        with pytest.warns(InsertionWarning, match="trained norms were removed"):
            remove_batch_norm(loaded)
        assert not norms_of(loaded)


@each_case
@each_placement
def test_it_compiles_without_a_graph_break(case, placement):
    model = case.make()
    insert_batch_norm(model, case.example(), placement=placement)
    torch.manual_seed(0)
    expected = copy.deepcopy(model)(*case.example())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(*case.example()), expected)


# Raised inside torch's own compiler on import.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's default backend needs a C++ compiler (g++)")
@each_placement
def test_the_default_backend_compiles_a_training_step(placement):
    model, x = ResidualNet(), torch.randn(4, 3, 8, 8)
    insert_batch_norm(model, (x,), placement=placement)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    torch.compile(model)(x).square().sum().backward()
    twin(x).square().sum().backward()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if expected.grad is not None:
            # Fused kernels sum in another order.
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)
    for found, expected in zip(norms_of(model), norms_of(twin), strict=True):
        torch.testing.assert_close(found.running_var, expected.running_var)


@pytest.mark.parametrize("kind", ["mlp", "conv", "residual"])
@each_placement
def test_outputs_gradients_and_buffers_equal_a_net_with_batch_norm_written_by_hand(kind, placement):
    torch.manual_seed(0)
    written = HandWritten(kind, placement).double()
    plain = HandWritten(kind, None).double()
    plain.load_state_dict({name: value for name, value in written.state_dict().items() if "norm" not in name})
    x = written.example().double()
    plan = insert_batch_norm(plain, (x,), placement=placement)
    assert len(plan.inserted) == 2
    for _ in range(2):
        expected, found = written(x), plain(x)
        torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(plain.first.weight.grad, written.first.weight.grad)
    by_shape = zip(norms_of(plain), written.norms, strict=True)
    for norm, oracle in by_shape:
        torch.testing.assert_close(norm.running_mean, oracle.running_mean)
        torch.testing.assert_close(norm.running_var, oracle.running_var)
        torch.testing.assert_close(norm.weight.grad, oracle.weight.grad)
    torch.testing.assert_close(plain.eval()(x), written.eval()(x))


def test_the_bias_behind_which_a_norm_stands_is_frozen_and_no_other():
    model = ResidualNet()
    insert_batch_norm(model, (torch.randn(4, 3, 8, 8),))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.bias", "blocks.0.conv1.bias", "blocks.1.conv1.bias"}
    after = ResidualNet()
    insert_batch_norm(after, (torch.randn(4, 3, 8, 8),), placement="after")
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_a_bias_that_was_frozen_or_is_tied_stays_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[0].bias.requires_grad_(False)
    model[4].bias = model[2].bias
    insert_batch_norm(model, (torch.randn(6, 4),))
    assert model[2].bias.requires_grad
    remove_batch_norm(model)
    assert not model[0].bias.requires_grad


def test_two_owners_share_one_activation_module():
    act = nn.ReLU()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), act

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.layer(x) + x)

    model = nn.Sequential(Block(), Block(), nn.Linear(4, 1))
    plan = insert_batch_norm(model, (torch.randn(6, 4),))
    assert [(site.owner, site.attach) for site in plan.inserted] == [("0", "shared"), ("1", "shared")]
    model(torch.randn(8, 4))
    assert [int(norm.num_batches_tracked) for norm in act.bn_lightning_norm] == [1, 1]


def test_a_second_insertion_of_the_same_plan_changes_nothing_and_another_is_refused():
    model, args = FunctionalMLP(), (torch.randn(6, 5),)
    plan = insert_batch_norm(model, args)
    norms = norms_of(model)
    assert insert_batch_norm(model, args) is plan
    assert apply_plan(model, plan) is plan
    assert norms_of(model) == norms
    with pytest.raises(PlanMismatchError, match=r"already carries norms \(batch, before: 2 sites\).*\(batch, after\)"):
        insert_batch_norm(model, args, placement="after")
    with pytest.raises(PlanMismatchError, match="Take the first out with remove_batch_norm"):
        apply_plan(model, plan_insertion(FunctionalMLP(), args, placement="after"))


def test_every_site_skipped():
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    with pytest.raises(NoSiteError, match=r"inserts no norm. Its sites were skipped: 1: an output head"):
        insert_batch_norm(model, (torch.randn(6, 4),))
    assert plan_of(model) is None


def test_a_plan_for_another_model_leaves_the_model_alone():
    plan = plan_insertion(ResidualNet(), (torch.randn(4, 3, 8, 8),))
    model = ResidualBlock()
    keys = list(model.state_dict())
    with pytest.raises(PlanMismatchError, match=r"ResidualBlock"):
        apply_plan(model, plan)
    assert list(model.state_dict()) == keys


def test_a_factory_that_fails_half_way_leaves_the_model_as_it_was():
    made = []

    def factory(channels: int) -> nn.Module:
        made.append(channels)
        if len(made) == 2:
            raise KeyboardInterrupt
        return nn.BatchNorm1d(channels)

    model = FunctionalMLP()
    keys, hooks = list(model.state_dict()), hook_counts(model)
    with pytest.raises(KeyboardInterrupt):
        insert_batch_norm(model, (torch.randn(6, 5),), norm=factory)
    assert (list(model.state_dict()), hook_counts(model)) == (keys, hooks)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_plan_made_with_a_factory_needs_it_again():
    plan = plan_insertion(FunctionalMLP(), (torch.randn(6, 5),), norm=nn.LayerNorm)
    with pytest.raises(ValueError, match="made with a norm factory; give the same factory again"):
        apply_plan(FunctionalMLP(), plan)
    model = FunctionalMLP()
    apply_plan(model, plan, norm=nn.LayerNorm)
    assert [type(norm) for norm in norms_of(model)] == [nn.LayerNorm, nn.LayerNorm]
    assert model.first.bias.requires_grad  # a layer norm does not cancel a per-channel bias


def test_removing_from_a_model_without_norms_says_so():
    with pytest.warns(NoEffectWarning, match="FunctionalMLP carries no inserted norms"):
        assert remove_batch_norm(FunctionalMLP()) is None


def test_removal_after_training_warns_that_the_function_changed():
    model = FunctionalMLP()
    insert_batch_norm(model, (torch.randn(6, 5),))
    model(torch.randn(6, 5))
    with pytest.warns(InsertionWarning, match="2 trained norms were removed"):
        remove_batch_norm(model)


def test_an_exception_in_a_forward_does_not_confuse_the_next_one():
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.layer, self.head = ResidualBlock(2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)
            self.fails = False

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.layer(x) + x)
            if self.fails:
                raise RuntimeError("moody")
            return self.head(F.relu(self.block(x) + x))

    model, x = Moody(), torch.randn(4, 2, 5, 5)
    insert_batch_norm(model, (x,))
    twin = copy.deepcopy(model)
    model.fails = True
    with pytest.raises(RuntimeError, match="moody"):
        model(x)
    model.fails = False
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(x), twin(x))


def test_sync_batch_norm_conversion_reaches_every_inserted_norm():
    model = ResidualNet()
    insert_batch_norm(model, (torch.randn(4, 3, 8, 8),))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert {type(norm) for norm in norms_of(converted)} == {nn.SyncBatchNorm}
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))


def test_device_and_type_are_those_of_the_neighbouring_layer():
    model = FunctionalMLP().double()
    insert_batch_norm(model, (torch.randn(6, 5, dtype=torch.float64),))
    assert {norm.weight.dtype for norm in norms_of(model)} == {torch.float64}
    meta = FunctionalMLP().to("meta")
    apply_plan(meta, plan_of(model))
    assert {norm.weight.device.type for norm in norms_of(meta)} == {"meta"}


def test_it_runs_under_autocast_and_bfloat16():
    model = ResidualNet()
    insert_batch_norm(model, (torch.randn(4, 3, 8, 8),))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 3, 8, 8))
    assert output.dtype == torch.bfloat16
    assert all(norm.running_mean.dtype == torch.float32 for norm in norms_of(model))


def test_an_unbatched_image_is_normalised_over_its_positions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    insert_batch_norm(model, (torch.randn(4, 3, 8, 8),))
    x = torch.randn(3, 8, 8)
    hidden = model[0](x)
    torch.testing.assert_close(hidden.mean((1, 2)), torch.zeros(4), atol=1e-6, rtol=0)  # zero up to float32 rounding
    torch.testing.assert_close(model.eval()(x), model.eval()(x[None])[0])


def test_no_warning_is_raised_by_a_plain_insertion():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insert_batch_norm(FunctionalMLP(), (torch.randn(6, 5),))


class Iterating(nn.Module):
    """An owner that runs all its children in turn, with a functional nonlinearity between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return F.relu(x + 1)


def test_an_owner_that_runs_all_its_children_passes_the_container_of_norms():
    model, x = nn.Sequential(Iterating(), nn.Linear(4, 1)), torch.randn(6, 4)
    expected = model(x)
    insert_batch_norm(model, (x,), norm=lambda channels: nn.Identity())
    assert "bn_lightning_norm" in dict(model[0].named_children())
    assert torch.equal(model(x), expected)


def test_a_recursive_owner_counts_each_call_of_itself_apart():
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            x = F.relu(self.a(x) + x)
            if depth:
                x = self(x, depth - 1)
            return self.c(F.relu(self.b(x) + x))

    model, x = Recursive(), torch.randn(6, 4)
    plan = plan_insertion(model, (x,))
    for site in plan.sites:
        plan = plan.override(site.name, "insert")
    apply_plan(model, plan)
    model(x)
    norms = model.bn_lightning_norm
    assert [int(norm.num_batches_tracked) for norm in norms] == [site.visits for site in plan.inserted] == [3, 3]


def test_norms_in_a_part_are_reported_and_described_for_the_whole():
    whole, x = nn.Sequential(FunctionalMLP(), nn.ReLU(), nn.Linear(3, 1)), torch.randn(6, 5)
    part = insert_batch_norm(whole[0], (x,))
    with pytest.raises(PlanMismatchError, match="A part of Sequential carries inserted norms already: 0"):
        insert_batch_norm(whole, (x,))
    plan = plan_of(whole)
    assert [(site.name, site.layer, site.owner) for site in plan.inserted] == [
        ("0.relu_0", "0.first", "0"),
        ("0.tanh_0", "0.second", "0"),
    ]
    fresh = nn.Sequential(FunctionalMLP(), nn.ReLU(), nn.Linear(3, 1))
    apply_plan(fresh, plan)
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh.eval()(x), whole.eval()(x))
    assert remove_batch_norm(whole[0]) == part


def test_parts_with_different_norms_have_no_common_plan():
    whole, x = nn.ModuleList([FunctionalMLP(), FunctionalMLP()]), torch.randn(6, 5)
    insert_batch_norm(whole[0], (x,))
    insert_batch_norm(whole[1], (x,), placement="after")
    with pytest.raises(PlanMismatchError, match="sub-modules 0, 1 carry norms of different kinds or placements"):
        plan_of(whole)


def test_excluding_a_site_that_carries_a_norm_is_refused():
    model, x = FunctionalMLP(), torch.randn(6, 5)
    insert_batch_norm(model, (x,))
    with pytest.raises(PlanMismatchError, match=r"\(batch, before, without tanh_0 \(exclude\)\)"):
        insert_batch_norm(model, (x,), exclude=["tanh*"])


def test_removal_reaches_a_forward_that_somebody_wrapped():
    model, x = nn.Sequential(FunctionalResidual(), nn.Linear(2, 1)), torch.randn(6, 6)
    expected = model.eval()(x)
    model.train()
    insert_batch_norm(model, (x,))
    inner = model[0].forward
    model[0].forward = lambda *args: inner(*args)
    remove_batch_norm(model)
    assert torch.equal(model.eval()(x), expected)


class FunctionalWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.kernel))


@pytest.mark.parametrize(
    "make",
    [
        FunctionalWeight,
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 1)),
    ],
)
def test_a_weight_used_in_a_function_and_a_parametrized_layer(make):
    model = make()
    insert_batch_norm(model, (torch.randn(6, 4),))
    model(torch.randn(6, 4)).sum().backward()
    (norm,) = norms_of(model)
    assert norm.weight.grad.isfinite().all()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_plan_may_keep_the_bias(norm):
    model, x = ResidualNet(), torch.randn(4, 3, 8, 8)
    plan = replace(plan_insertion(model, (x,)), norm=norm, norm_options={"affine": True})
    apply_plan(model, replace(plan, bias="keep"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    frozen = ResidualNet()
    apply_plan(frozen, plan)
    assert not frozen.stem.bias.requires_grad
    remove_batch_norm(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "rms"])
@each_placement
def test_every_kind_of_norm_survives_copies_checkpoints_pickles_and_the_compiler(norm, placement):
    model, x = ResidualNet(), torch.randn(4, 3, 8, 8)
    plan = replace(plan_insertion(model, (x,), placement=placement), norm=norm, norm_options={"affine": True})
    apply_plan(model, plan)
    with torch.no_grad():
        for made in norms_of(model):
            made.weight.uniform_(0.5, 2)
    fresh = ResidualNet()
    apply_plan(fresh, InsertionPlan.from_dict(plan.to_dict()))
    fresh.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    expected = model(x)
    for twin in (fresh, copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(twin(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    with pytest.warns(InsertionWarning, match="5 trained norms were removed"):
        remove_batch_norm(model)


@each_case
@each_placement
def test_it_exports_with_a_batch_of_any_size(case, placement):
    model = case.make()
    insert_batch_norm(model, case.example(), placement=placement)
    model(*case.example(8))
    model.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, case.example(), dynamic_shapes=({0: batch},)).module()
    for size in (6, 3):
        torch.testing.assert_close(program(*case.example(size)), model(*case.example(size)))


class HandingOn(nn.Module):
    """A wrapper that answers for what it wraps, as fabric's and PEFT's do; with a call of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(6, 2)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(x) + x))


def test_a_wrapper_that_hands_attributes_on_carries_norms_of_its_own():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(x + self.a(x)))

    model, x = HandingOn(Inner()), torch.randn(8, 6)
    keys, before = list(model.state_dict()), model(x)
    insert_batch_norm(model, (x,))
    model(x).sum().backward()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)}
    assert list(norms) == ["inner.bn_lightning_norm.0", "bn_lightning_norm.0"]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms.values())
    with pytest.warns(InsertionWarning, match="2 trained norms were removed"):
        remove_batch_norm(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)


def test_a_factory_that_makes_one_norm_for_all_sites_is_refused():
    model, only = FunctionalMLP(), nn.LazyBatchNorm1d()
    keys = list(model.state_dict())
    with pytest.raises(NormOptionError, match=r"gave the sites 'relu_0' and 'tanh_0' the same LazyBatchNorm1d"):
        insert_batch_norm(model, (torch.randn(4, 5),), norm=lambda channels: only)
    assert list(model.state_dict()) == keys
    assert model.first.bias.requires_grad


def test_norms_are_removed_from_a_model_without_values():
    with torch.device("meta"):
        model, x = FunctionalMLP(), torch.randn(4, 5)
    keys = list(model.state_dict())
    plan = insert_batch_norm(model, (x,))
    assert remove_batch_norm(model) == plan
    assert list(model.state_dict()) == keys


def test_removal_from_a_part_says_that_the_norms_are_the_whole_models():
    model = nn.Sequential(FunctionalMLP(), nn.ReLU(), nn.Linear(3, 1))
    insert_batch_norm(model, (torch.randn(4, 5),))
    with pytest.warns(NoEffectWarning, match="FunctionalMLP is a part of a model that norms were inserted into"):
        assert remove_batch_norm(model[0]) is None
    assert len(norms_of(model)) == 3
