import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FunctionalMLP
from torch import Tensor, fx, nn

from bn_lightning.surgery.attach import remove_batch_norm
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.plan_match import host_path

WITHIN = {"shared_activation", "shared_layer", "residual", "residual_functional", "called_twice", "transposed_conv"}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_trace_has_the_norms_or_is_refused(case, placement):
    """Norms on layers and activation modules survive in a graph of torch.fx; those on calls within a forward do not."""
    model = case.make()
    plan = insert_batch_norm(model, case.example(), placement=placement)
    within = any(site.attach in ("call", "shared") for site in plan.inserted)
    assert within or case.name not in WITHIN
    hosts = [model.get_submodule(host_path(site)) for site in plan.inserted]
    traced_through = any(not type(host).__module__.startswith("torch.nn") for host in hosts)
    model(*case.example(8))
    model.eval()
    if within or traced_through:
        with pytest.raises(
            RuntimeError, match=r"torch\.fx traces through .*, and the norms inserted there .* torch\.export"
        ):
            fx.symbolic_trace(model)
        remove_quietly(model)
        fx.symbolic_trace(model)
    else:
        traced = fx.symbolic_trace(model)
        torch.testing.assert_close(traced(*case.example()), model(*case.example()))


def remove_quietly(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="trained norms were removed"):
        remove_batch_norm(model)


class Owner(FunctionalMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x))) + 1))


class KeepsOwners(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, Owner) or super().is_leaf_module(module, path)


def test_a_tracer_that_keeps_the_owner_whole_may_trace():
    model, x = nn.Sequential(nn.Linear(5, 5), Owner()), torch.randn(6, 5)
    insert_batch_norm(model, (x,))
    model(x)
    model.eval()
    with pytest.raises(RuntimeError, match=r"torch\.fx traces through Owner"):
        fx.symbolic_trace(model)
    traced = fx.GraphModule(model, KeepsOwners().trace(model))
    torch.testing.assert_close(traced(x), model(x))
    with pytest.raises(RuntimeError, match=r"torch\.fx traces through Owner"):
        KeepsOwners().trace(model[1])  # as the root it is traced through again


def test_a_layer_of_ones_own_is_traced_through_and_refused():
    class MyLinear(nn.Linear):
        pass

    model, x = nn.Sequential(MyLinear(5, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(6, 5)
    plan = insert_batch_norm(model, (x,))
    assert [site.attach for site in plan.inserted] == ["producer"]
    with pytest.raises(RuntimeError, match=r"torch\.fx traces through the module with the norm '1'"):
        fx.symbolic_trace(model)


def test_modules_and_parameters_are_listed_as_ever():
    model = Owner()
    insert_batch_norm(model, (torch.randn(6, 5),))
    names = [name for name, _ in model.named_modules()]
    assert names == ["", "first", "second", "third", "first.bn_lightning_norm", "first.bn_lightning_norm.0"] or (
        "bn_lightning_norm.0" in names
    )
    assert {id(module) for module in model.modules()} == {id(module) for _, module in model.named_modules()}
    assert len(list(model.parameters())) == len(dict(model.named_parameters())) == 6 + 4
