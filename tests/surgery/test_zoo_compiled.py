"""Wherever torch captures a model of the zoo as one graph, it captures it with its norms too."""

import warnings

import pytest
import torch
from torch import nn
from zoo import ZOO
from zoo.case import Case, tensors_of

from bn_lightning.surgery.carried import plan_of
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.tracing.ops import UNSEEN_BY_COMPILER

INSERTABLE = [case for case in ZOO if case.inserted and not case.few_values]


def by_name(case: Case) -> str:
    return case.name


def with_norms(case: Case) -> nn.Module:
    model = case.build()
    insert_batch_norm(model, case.args(6), case.kwargs(6))
    return model


# Raised inside torch's own compiler, on import and where it meets an autograd function.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated. Methods on autograd functions:DeprecationWarning")
@pytest.mark.parametrize("case", [case for case in INSERTABLE if case.fullgraph], ids=by_name)
def test_one_graph_computes_what_the_eager_model_does(case):
    eager, model = with_norms(case), with_norms(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    if any(site.attach == "call" and site.function in UNSEEN_BY_COMPILER for site in plan_of(model).inserted):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="lets nobody intercept"):
            compiled(*case.args(6), **case.kwargs(6))
        return
    for training in (True, False):
        torch.manual_seed(1)
        expected = eager.train(training)(*case.args(6), **case.kwargs(6))
        torch.manual_seed(1)
        outputs = compiled.train(training)(*case.args(6), **case.kwargs(6))
        torch.testing.assert_close(tensors_of(outputs), tensors_of(expected))
    torch.testing.assert_close(model.state_dict(), eager.state_dict())


@pytest.mark.parametrize("case", [case for case in INSERTABLE if case.exportable], ids=by_name)
def test_an_exported_program_computes_what_the_model_does(case):
    model = with_norms(case)
    with torch.no_grad():
        model.train()(*case.args(6), **case.kwargs(6))
    expected = model.eval()(*case.args(6), **case.kwargs(6))
    with warnings.catch_warnings():
        # torch.export's own advice on names and attributes, which differs from release to release.
        warnings.simplefilter("ignore")
        program = torch.export.export(model, case.args(6), case.kwargs(6), strict=False)
    parts = [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    norms = [node for part in parts for node in part.graph.nodes if "batch_norm" in str(node.target)]
    assert len([node for node in norms if node.op == "call_function"]) >= len(plan_of(model).inserted)
    outputs = program.module()(*case.args(6), **case.kwargs(6))
    torch.testing.assert_close(tensors_of(outputs), tensors_of(expected))
