"""Wherever torch captures a model of the zoo as one graph, it captures it with its norms too."""

import warnings

import pytest
import torch
from torch import nn
from zoo import ZOO
from zoo.case import Case

from bn_lightning.surgery.insert import insert_batch_norm

INSERTABLE = [case for case in ZOO if case.inserted and not case.few_values]


def by_name(case: Case) -> str:
    return case.name


def with_norms(case: Case) -> nn.Module:
    model = case.build()
    insert_batch_norm(model, case.args(6), case.kwargs(6))
    return model


# Raised inside torch's own compiler on import.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", [case for case in INSERTABLE if case.fullgraph], ids=by_name)
def test_one_graph_computes_what_the_eager_model_does(case):
    eager, model = with_norms(case), with_norms(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for training in (True, False):
        torch.manual_seed(1)
        expected = eager.train(training)(*case.args(6), **case.kwargs(6))
        torch.manual_seed(1)
        outputs = compiled.train(training)(*case.args(6), **case.kwargs(6))
        torch.testing.assert_close(outputs, expected)
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
    norms = [node for node in program.graph.nodes if node.op == "call_function" and "batch_norm" in str(node.target)]
    assert len(norms) >= len(case.inserted)
    torch.testing.assert_close(program.module()(*case.args(6), **case.kwargs(6)), expected)
