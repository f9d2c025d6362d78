"""ONNX files of models with inserted norms, run by ONNX's own reference implementation."""

import pytest
import torch
from cases import CASES
from onnx.reference import ReferenceEvaluator

from bn_lightning.surgery.insert import insert_batch_norm

# Every way to attach a norm, and images; the exporter takes seconds for each.
EXPORTED = ("mlp", "conv2d", "pool_between", "shared_activation", "residual_functional", "tokens")


@pytest.mark.filterwarnings("ignore")  # of the exporter about itself: optional packages, its own deprecated calls
@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_computes_what_the_model_does(name):
    case = next(case for case in CASES if case.name == name)
    model = case.make()
    insert_batch_norm(model, case.example())
    model(*case.example(8))
    model.eval()
    program = torch.onnx.export(model, case.example(), dynamo=True, verbose=False)
    reference = ReferenceEvaluator(program.model_proto)
    (input_name,) = reference.input_names
    (found,) = reference.run(None, {input_name: case.example()[0].numpy()})
    # Other kernels sum in another order.
    torch.testing.assert_close(torch.from_numpy(found), model(*case.example()), rtol=1e-4, atol=1e-5)
