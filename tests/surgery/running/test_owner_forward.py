"""Every functional call of a nonlinearity keeps its norm in compiled code, or is run uncompiled aloud."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bn_lightning.errors import InsertionWarning
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.tracing.ops import NONLINEARITIES, UNSEEN_BY_COMPILER

ARGUMENTS = {"prelu": (torch.tensor([0.25]),), "threshold": (0.1, 0.0), "clamp": (0.0,), "clip": (0.0,), "max": (0.0,)}


class Scale(TorchFunctionMode):
    """Makes every call of one function a hundred times as large."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 100 if function is self.function else result


def arguments(name: str) -> tuple:
    bare = name.rpartition(".")[2].rstrip("_")
    if bare in ("maximum", "max"):
        return (torch.zeros(4, 6),)
    return next((value for start, value in ARGUMENTS.items() if bare.startswith(start)), ())


@pytest.mark.parametrize("name", sorted(set(NONLINEARITIES) - UNSEEN_BY_COMPILER))
def test_the_compiler_lets_each_function_be_intercepted_but_the_listed_ones(name):
    function = NONLINEARITIES[name]

    def run(x: Tensor) -> Tensor:
        with Scale(function):
            return function(x + 0.0, *arguments(name))

    x = torch.rand(4, 6) + 0.5
    torch._dynamo.reset()
    torch.manual_seed(0)
    expected = run(x)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(x), expected)


class Residual(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.act, self.first, self.head = act, nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x) + x))


def eager_and_compiled(act, **options) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = Residual(act), torch.randn(8, 6)
    (site,) = insert_batch_norm(model, (x,)).inserted
    assert site.attach == "call"
    torch._dynamo.reset()
    return model(x), torch.compile(model, backend="eager", **options)(x)


@pytest.mark.parametrize("act", [F.hardswish, F.relu_, torch.tanh_], ids=["hardswish", "relu_", "tanh_"])
def test_a_call_that_cannot_be_met_in_compiled_code_runs_uncompiled_aloud(act):
    with pytest.warns(InsertionWarning, match="The forward of the model runs uncompiled"):
        expected, compiled = eager_and_compiled(act)
    torch.testing.assert_close(compiled, expected)


def test_where_one_graph_is_asked_for_such_a_call_is_refused():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="lets nobody intercept"):
        eager_and_compiled(F.hardswish, fullgraph=True)


@pytest.mark.parametrize("act", [F.relu, torch.tanh, F.gelu, Tensor.relu_])
def test_other_calls_keep_one_graph(act):
    expected, compiled = eager_and_compiled(act, fullgraph=True)
    torch.testing.assert_close(compiled, expected)
