"""Folding of inserted norms: what is left is plain torch, runs and loads without this package, and exports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FunctionalMLP
from fold_cases import settle
from torch import Tensor, fx, nn

from bn_lightning.errors import FoldingError, FoldingWarning
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.carried import containers, plan_of
from bn_lightning.surgery.folding.fold import fold_batch_norm
from bn_lightning.surgery.folding.fold_planning import plan_folding
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.hooks import OWN_HOOKS

PLACEMENTS = ("before", "after")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_placement = pytest.mark.parametrize("placement", PLACEMENTS)
# Kept norms are looked at by name where they are the point.
pytestmark = [
    pytest.mark.filterwarnings("ignore::bn_lightning.errors.FoldingWarning"),
    pytest.mark.filterwarnings("ignore:No batch norm of:bn_lightning.errors.NoEffectWarning"),
]


def inserted(model: nn.Module, *args: Tensor, norm: object = "batch", **options: object) -> nn.Module:
    """The model with norms in it, which have statistics as after training."""
    plan = plan_insertion(model, args, norm=norm, **options)  # type: ignore[arg-type]
    apply_plan(model, plan, norm=None if isinstance(norm, str) else norm)  # type: ignore[arg-type]
    return settle(model)


def traces_of_the_package(model: nn.Module) -> list[str]:
    found = []
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        found += [f"{path}: hook {hook}" for hook in hooks if hook in OWN_HOOKS]
        values = vars(module).values()
        held = (type(module), *map(type, values), *(value for value in values if isinstance(value, type)))
        found += [f"{path}: {kind}" for kind in held if kind.__module__.startswith("bn_lightning")]
    return found


@each_case
@each_placement
def test_outputs_stay_and_nothing_of_the_package_is_left(case, placement):
    model = case.make()
    inserted(model, *case.example(), placement=placement)
    folded = fold_batch_norm(model, case.example())
    for batch in (6, 3):
        torch.testing.assert_close(folded(*case.example(batch)), model(*case.example(batch)))
    assert traces_of_the_package(folded) == []
    assert plan_of(model) is not None


@each_case
@each_placement
def test_with_partial_forwards_are_not_rewritten_and_outputs_stay(case, placement):
    model = case.make()
    inserted(model, *case.example(), placement=placement)
    plan = plan_folding(model, case.example())
    folded = fold_batch_norm(model, case.example(), partial=True)
    assert not any(isinstance(module, fx.GraphModule) for module in folded.modules() if module is folded)
    torch.testing.assert_close(folded(*case.example(3)), model(*case.example(3)))
    left = [norm for _, norms in containers(folded) for norm in norms if not isinstance(norm, nn.Identity)]
    stuck = any(norm.place == "graph" for norm in plan.kept)
    assert len(left) == (len(plan.kept) if stuck else 0)


# Where every norm stands directly behind a layer.
ALL_FOLDED = ("mlp", "mlp_functional", "conv2d", "conv_transpose2d", "tokens", "transposed_conv", "shared_activation")


@pytest.mark.parametrize("name", ALL_FOLDED)
def test_a_fully_folded_model_has_the_types_and_keys_it_had_before_insertion(name):
    case = next(case for case in CASES if case.name == name)
    model = case.make()
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    folded = fold_batch_norm(inserted(model, *case.example()), case.example())
    assert list(folded.state_dict()) == keys
    assert [type(module) for module in folded.modules()] == types
    assert [set(vars(module)) for module in folded.modules()] == attributes
    assert [parameter.requires_grad for parameter in folded.parameters()] == trainable


class TwoNorms(nn.Module):
    """One site that folds and one, behind a sum, that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(F.gelu(self.first(x)))
        return self.head(torch.exp(F.relu(x)))


class Undecided(TwoNorms):
    """… in a forward that no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e6:
            return x
        return super().forward(x)


def test_a_frozen_bias_trains_again_in_the_copy_alone():
    model, x = FunctionalMLP(), torch.randn(8, 5)
    inserted(model, x)
    assert not model.first.bias.requires_grad
    assert fold_batch_norm(model, (x,)).first.bias.requires_grad
    assert not model.first.bias.requires_grad


def test_with_partial_frozen_biases_of_folded_layers_train_again():
    model, x = TwoNorms(), torch.randn(8, 6)
    inserted(model, x)
    assert not model.first.bias.requires_grad
    folded = fold_batch_norm(model, (x,), partial=True)
    assert folded.first.bias.requires_grad
    assert not model.first.bias.requires_grad


def test_a_norm_behind_a_sum_stands_in_the_owners_graph_and_is_named():
    model, x = TwoNorms(), torch.randn(8, 6)
    inserted(model, x)
    with pytest.warns(FoldingWarning, match=r"1 stay .*\n  bn_lightning_norm.0: its input comes from add in the model"):
        folded = fold_batch_norm(model, (x,))
    assert isinstance(folded, fx.GraphModule)
    assert sorted(set(folded.state_dict()) - set(TwoNorms().state_dict())) == sorted(
        f"frozen_norm_0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    )
    assert set(TwoNorms().state_dict()) <= set(folded.state_dict())


def test_a_forward_that_no_graph_can_hold_is_refused_with_the_norms_name_and_the_way_out():
    model, x = Undecided(), torch.randn(8, 6)
    inserted(model, x)
    with pytest.raises(
        FoldingError, match=r"norms:\n  bn_lightning_norm.0: its input .*\nand the forward of Undecided"
    ):
        fold_batch_norm(model, (x,))
    folded = fold_batch_norm(model, (x,), partial=True)
    torch.testing.assert_close(folded(x), model(x))


class DefaultArgument(TwoNorms):
    """As a graph it takes the branch of a given mask, so that other calls are met in it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return self.head(x)
        return super().forward(x)


def test_a_graph_that_takes_another_path_is_refused():
    model, x = DefaultArgument(), torch.randn(8, 6)
    inserted(model, x)
    with pytest.raises(FoldingError, match=r"with them in it: it lacks call 0 of relu, which the example made"):
        fold_batch_norm(model, (x,))


class ModuleActivation(nn.Module):
    """Channels last, an activation module behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(x + self.up(x)).cumsum(1))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_norm_on_an_activation_module_stands_beside_it(placement):
    model, x = ModuleActivation(), torch.randn(4, 3, 5)
    inserted(model, x, placement=placement)
    folded = fold_batch_norm(model, (x,))
    kinds = [type(module).__name__ for module in folded.act]
    assert kinds == (["FrozenNorm", "ReLU"] if placement == "before" else ["ReLU", "FrozenNorm"])
    torch.testing.assert_close(folded(2 * x[:2]), model(2 * x[:2]))


def test_a_norm_without_scale_and_shift_can_stand_along_another_axis():
    model, x = ModuleActivation(), torch.randn(4, 3, 5)
    inserted(model, x, norm=lambda channels: nn.BatchNorm1d(channels, affine=False))
    torch.testing.assert_close(fold_batch_norm(model, (x,))(x), model(x))


def test_another_kind_of_norm_stays_beside_its_layer_where_it_can():
    model, x = FunctionalMLP(), torch.randn(8, 5)
    inserted(model, x, norm=nn.LayerNorm)
    plan = plan_folding(model, (x,))
    assert [norm.reason.split(",")[0] for norm in plan.kept] == ["it is a LayerNorm"] * 2
    folded = fold_batch_norm(model, (x,))
    assert type(folded.first) is nn.Linear
    assert type(folded.first.frozen_norm_0.norm) is nn.LayerNorm
    torch.testing.assert_close(folded(x), model(x))


def test_another_kind_of_norm_on_rearranged_input_is_refused():
    model, x = ModuleActivation(), torch.randn(4, 3, 5)
    inserted(model, x, norm=nn.LayerNorm)
    with pytest.raises(FoldingError, match=r"no place in plain torch:\n  act.bn_lightning_norm.0: it is a LayerNorm"):
        fold_batch_norm(model, (x,))
    folded = fold_batch_norm(model, (x,), partial=True)
    torch.testing.assert_close(folded(x), model(x))


LOAD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bn_lightning":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
import torch

sys.path.append(sys.argv[2])
for model, x, expected in torch.load(sys.argv[1], weights_only=False):
    torch.testing.assert_close(model(x), expected)
assert "bn_lightning" not in sys.modules
"""


def test_copies_load_and_run_where_the_package_cannot_be_imported(tmp_path):
    saved = []
    for case in CASES:
        if case.name not in ("mlp_functional", "residual", "residual_functional", "tokens", "shared_activation"):
            continue
        for options in ({}, {"placement": "after"}, {"inputs": True}):
            model, (x,) = case.make(), case.example()
            inserted(model, x, **options)
            saved.append((fold_batch_norm(model, (x,)), x, model(x).detach()))
    torch.save(saved, tmp_path / "folded.pt")
    where = Path(__file__).parents[2]  # where the classes of the cases are
    command = [sys.executable, "-c", LOAD, tmp_path / "folded.pt", where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


class FirstReads(nn.Module):
    """Its first layer pads with zeros, or not."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=padding), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def exported(folded: nn.Module, x: Tensor, path: Path) -> Tensor:
    """What ONNX Runtime computes of a model."""
    import onnxruntime

    torch.onnx.export(folded, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


EXPORTED = {
    "folded": (lambda: FunctionalMLP(), (8, 5), {}),
    "in a graph": (lambda: TwoNorms(), (8, 6), {"placement": "after"}),
    "beside an activation": (lambda: ModuleActivation(), (4, 3, 5), {}),
    "on a layer": (lambda: FirstReads(1), (4, 3, 8, 8), {"inputs": True}),
}


@pytest.mark.parametrize("name", EXPORTED)
# Raised inside torch's exporter and what it imports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_copy_exports_to_onnx_and_computes_the_same_there(name, tmp_path):
    make, shape, options = EXPORTED[name]
    model, x = make(), torch.randn(shape)
    inserted(model, x, **options)
    found = exported(fold_batch_norm(model, (x,)), x, tmp_path / "folded.onnx")
    # Another library sums in another order.
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 1])
def test_norms_on_raw_inputs_go_into_the_first_layer_or_stand_before_it(padding):
    model, x = FirstReads(padding), torch.randn(4, 3, 8, 8)
    inserted(model, x, inputs=True)
    assert sorted(norm.num_features for norm in model.first.bn_lightning_norm) == [3, 4]
    folded = fold_batch_norm(model, (x,))
    assert type(folded.first) is nn.Conv2d
    assert [type(module.norm) for module in folded.first.children()] == [nn.BatchNorm2d] * padding
    torch.testing.assert_close(folded(x[:2, :, :6]), model(x[:2, :, :6]))
    assert traces_of_the_package(folded) == []


def test_norms_on_the_last_layer_of_each_branch_are_folded():
    case = next(case for case in CASES if case.name == "residual")
    model, (x,) = case.make(), case.example()
    inserted(model, x, site="affine")
    folded = fold_batch_norm(model, (x,))
    assert list(folded.state_dict()) == list(case.make().state_dict())
    torch.testing.assert_close(folded(x), model(x))


def test_synchronised_norms_are_folded():
    model, x = FunctionalMLP(), torch.randn(8, 5)
    inserted(model, x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    folded = fold_batch_norm(converted, (x,))
    assert list(folded.state_dict()) == list(FunctionalMLP().state_dict())
    torch.testing.assert_close(folded(x), converted(x))


def test_norms_of_a_sub_module_are_folded_with_the_whole():
    model, x = nn.Sequential(TwoNorms(), nn.ReLU()), torch.randn(8, 6)
    inserted(model[0], x)
    model.eval()
    folded = fold_batch_norm(model, (x,))
    assert [fold.norm for fold in plan_folding(model, (x,)).folds] == ["0.first.bn_lightning_norm.0"]
    assert "0.frozen_norm_0.weight" in folded.state_dict()
    torch.testing.assert_close(folded(x), model(x))


def test_a_folded_model_can_be_inserted_into_and_folded_again():
    model, x = FunctionalMLP(), torch.randn(8, 5)
    folded = fold_batch_norm(inserted(model, x), (x,))
    again = inserted(folded, x)
    torch.testing.assert_close(fold_batch_norm(again, (x,))(x), again(x))


def test_what_copying_loses_is_noticed():
    model, x = TwoNorms(), torch.randn(8, 6)
    graph = inserted(fx.symbolic_trace(model), x)
    with pytest.raises(FoldingError, match="A copy of GraphModule computes something else than the model itself"):
        fold_batch_norm(graph, (x,))


class NamedCode(TwoNorms):
    """A parameter's name is one that torch keeps for graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.code)


def test_a_forward_that_torch_cannot_put_into_a_graph_module_is_refused():
    model, x = NamedCode(), torch.randn(8, 6)
    inserted(model, x)
    with pytest.raises(FoldingError, match="and the forward of NamedCode, where they act, cannot be rewritten"):
        fold_batch_norm(model, (x,))
