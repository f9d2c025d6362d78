import pytest
import torch
import torch.nn.functional as F
from cases import CASES, ResidualNet
from torch import Tensor, nn

from bn_lightning.surgery.trace import trace_calls


def state_of(model: nn.Module) -> dict:
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert (before["modes"], before["hooks"]) == (after["modes"], after["hooks"])
    assert all(a is b for a, b in zip(before["grads"], after["grads"], strict=True))
    assert torch.equal(before["random"], after["random"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tracing_leaves_no_trace(case):
    model = case.make()
    model.append(nn.Dropout()) if isinstance(model, nn.Sequential) else None
    before = state_of(model)
    trace_calls(model, lambda: model(*case.example()))
    assert_same(before, state_of(model))


class Failing(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.norm, self.error = nn.BatchNorm1d(4), error

    def forward(self, x: Tensor) -> Tensor:
        F.dropout(self.norm(x))
        self.eval()
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_model_that_fails_half_way_is_as_it_was(error):
    model = Failing(error)
    before = state_of(model)
    with pytest.raises(error):
        trace_calls(model, lambda: model(torch.randn(8, 4)))
    assert_same(before, state_of(model))


def test_the_producer_and_the_input_of_an_inplace_activation_are_taken_before_it_runs():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True), nn.Linear(2, 1))
    nodes = trace_calls(model, lambda: model(torch.randn(4, 3))).nodes
    relu = next(node for node in nodes if node.role == "nonlinearity")
    assert nodes[relu.inputs[0]].layer == "0"
    last = next(node for node in nodes if node.layer == "2" and node.role == "affine")
    assert last.inputs[0] == relu.index


def test_who_reads_what_and_what_is_returned():
    model = ResidualNet()
    trace = trace_calls(model, lambda: model(torch.randn(2, 3, 8, 8)))
    stem = next(node for node in trace.nodes if node.layer == "stem" and node.role == "affine")
    relu = trace.nodes[trace.consumers[stem.index][0]]
    readers = [trace.nodes[index].op for index in trace.consumers[relu.index]]
    assert readers == ["conv2d", "add"]
    (output,) = trace.outputs
    assert trace.nodes[output].layer == "head"
    assert ("stem", stem.index) in trace.returned


def test_calls_are_counted_in_their_owners_own_code_only():
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) + F.relu(-x) * 2

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.child = nn.Sequential(Inner())

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.child(F.relu(self.inner(x))))

    model = Outer()
    nodes = trace_calls(model, lambda: model(torch.randn(4, 3))).nodes
    own = [node.call.index for node in nodes if node.call and node.call.owner == "" and node.call.function]
    assert own == [0, 1]


def test_a_result_that_no_torch_call_made_belongs_to_its_module():
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = [torch.randn(4, 3)]

        def forward(self, x: Tensor) -> Tensor:
            return self.values[0]

    model = nn.Sequential(nn.Linear(3, 3), Stored(), nn.ReLU(), nn.Linear(3, 1))
    trace = trace_calls(model, lambda: model(torch.randn(4, 3)))
    relu = next(node for node in trace.nodes if node.role == "nonlinearity")
    source = trace.nodes[relu.inputs[0]]
    assert (source.role, source.op) == ("opaque", "stored")
    assert trace.nodes[source.inputs[0]].layer == "0"


def test_a_compiled_model_is_traced_as_eager_code():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    model.compile(backend="eager")
    roles = [node.role for node in trace_calls(model, lambda: model(torch.randn(4, 3))).nodes]
    assert roles.count("nonlinearity") == 1
