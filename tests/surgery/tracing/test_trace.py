import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, ResidualNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bn_lightning.surgery.tracing.graph import Call
from bn_lightning.surgery.tracing.trace import trace_calls


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


class TwoWays(nn.Module):
    """Takes one of two layers, as the sign of its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def step(self, x: Tensor) -> Tensor:
        return self(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x) if x.sum() > 0 else self.b(x)))


def test_several_runs_are_one_trace_in_which_each_stands_alone():
    model, x = TwoWays(), torch.ones(4, 3)
    trace = trace_calls(model, lambda: model.step(x), lambda: model.step(-x), lambda: model.step(x))
    layers = [(node.run, node.layer) for node in trace.nodes if node.role == "affine"]
    assert layers == [(0, "a"), (0, "head"), (1, "b"), (1, "head"), (2, "a"), (2, "head")]
    assert {trace.nodes[index].run for index in trace.outputs} == {0, 1, 2}
    assert all(trace.nodes[source].run == node.run for node in trace.nodes for source in node.inputs)
    outside = [node.call.index for node in trace.nodes if node.call and node.call.owner is None]
    assert outside == [0, 0, 0]


class Checkpointed(nn.Module):
    """Calls a function and an activation module both inside and outside a checkpoint that it opens itself."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.act, self.use_reentrant = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh(), use_reentrant

    def inner(self, x: Tensor) -> Tensor:
        return F.gelu(self.b(self.act(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(F.relu(self.a(x)))
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_calls_that_a_checkpoint_repeats_are_marked(use_reentrant):
    model = Checkpointed(use_reentrant=use_reentrant).train()
    nodes = trace_calls(model, lambda: model(torch.randn(4, 3))).nodes
    found = [(node.op, node.call.index, node.call.checkpointed) for node in nodes if node.call]
    assert found == [("relu", 0, False), ("tanh", 0, False), ("tanh", 1, True), ("gelu", 0, True)]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_around_a_whole_module_repeats_that_modules_forward_too(use_reentrant):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(TwoWays(), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    model = Around()
    nodes = trace_calls(model, lambda: model(torch.randn(4, 3))).nodes
    assert [(node.op, node.call.checkpointed) for node in nodes if node.call] == [("relu", False), ("sigmoid", False)]


def test_whether_a_call_is_repeated_is_no_part_of_its_identity():
    first, second = (Call("a", "torch.relu", None, 0, checkpointed) for checkpointed in (False, True))
    assert first == second
    assert hash(first) == hash(second)


def test_what_a_run_writes_to_in_place_gets_its_values_back():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(3, 2), [torch.zeros(())]

        def forward(self, x: Tensor, *, batch: dict[str, Tensor], extra: SimpleNamespace) -> None:
            F.relu(x, inplace=True)
            batch["y"][:, 0] = 5
            extra.z.t().mul_(3)
            self.seen[0] += 1
            F.relu(self.layer(x))

    model, x = Writes(), torch.randn(4, 3)
    y, z = torch.randn(4, 2, requires_grad=False), torch.randn(4, 2)
    kept = [tensor.clone() for tensor in (x, y, z)]
    trace = trace_calls(model, lambda: model(x, batch={"y": y}, extra=SimpleNamespace(z=z)))
    assert trace.outputs == frozenset()  # a model may return nothing
    trace_calls(model, lambda: model(x[:2], batch={"y": y}, extra=SimpleNamespace(z=z)))
    for tensor, values in zip((x, y, z), kept, strict=True):
        assert torch.equal(tensor, values)


def test_a_run_that_fails_half_way_gives_its_input_back_too():
    def run() -> None:
        x.mul_(2)
        raise KeyError

    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(KeyError):
        trace_calls(model, run)
    assert torch.equal(x, torch.ones(4, 3))


def test_an_inference_tensor_can_be_traced():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with torch.inference_mode():
        x = torch.randn(4, 3)
    assert [node.op for node in trace_calls(model, lambda: model(x)).nodes if node.call] == ["relu"]


def test_what_comes_from_the_model_alone_is_constant():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(3))
            self.kept = [torch.randn(3)]

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table.exp() * self.kept[0] + torch.zeros_like(x) + torch.ones(3).cumsum(0)

    model, x = Model(), torch.randn(4, 3)
    nodes = trace_calls(model, lambda: model(x)).nodes
    roles = {node.op: node.role for node in nodes}
    assert [roles[op] for op in ("exp", "mul", "zeros_like", "ones", "cumsum", "add", "input")] == [
        *["constant"] * 5,
        "join",
        "input",
    ]


def test_a_weight_that_is_prepared_keeps_its_layers_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.encode(x)), self.encode.weight.t())

    model = Tied()
    nodes = trace_calls(model, lambda: model(torch.randn(5, 4))).nodes
    assert [node.layer for node in nodes if node.role == "affine"] == ["encode", "encode"]


def test_scripted_modules_are_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scripting is on its way out of torch
        scripted = torch.jit.script(nn.Linear(3, 3))
    model = nn.Sequential(nn.Linear(3, 3), scripted)
    with pytest.raises(ValueError, match=r"The modules '1' are TorchScript, whose calls cannot be seen from Python"):
        trace_calls(model, lambda: model(torch.randn(4, 3)))
    with pytest.raises(ValueError, match=r"The modules the model itself are TorchScript"):
        trace_calls(scripted, lambda: scripted(torch.randn(4, 3)))


def test_quantized_layers_are_refused_by_name():
    quantized = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this kind of quantization is on its way out of torch
        model = nn.Sequential(quantized.Linear(3, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"The layers '0' are quantized and cannot be trained with a norm behind them"):
        trace_calls(model, lambda: model(torch.randn(4, 3)))


def test_on_the_meta_device_a_model_is_traced_with_an_example_there():
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)), torch.randn(5, 3)
    nodes = trace_calls(model, lambda: model(x)).nodes
    assert [(node.op, node.shape) for node in nodes if node.call] == [("relu", (5, 4))]
    with pytest.raises(
        ValueError, match=r"The parameters '0.weight', '0.bias', '3.weight', ... are on the meta device"
    ):
        trace_calls(model, lambda: model(torch.randn(5, 3)))


def test_an_error_of_a_model_with_values_stays_as_it_is():
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        trace_calls(model, lambda: model(torch.randn(4, 5)))
