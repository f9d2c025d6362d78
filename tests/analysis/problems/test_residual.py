import dataclasses

import torch
from torch import nn

import bn_lightning as bnl
from bn_lightning.analysis.problems.residual import residual_problem
from bn_lightning.analysis.problems.residual_model import ResidualBlock, ResidualMLP
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Arm, Budget, Study


def test_a_block_adds_its_branch_before_the_last_relu():
    block = ResidualBlock(3)
    with torch.no_grad():
        block.second.weight.zero_()
        block.second.bias.copy_(torch.tensor([1.0, -5.0, 0.0]))
    torch.testing.assert_close(block(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[2.0, 0.0, 3.0]]))


def test_norms_go_on_sums_or_on_branches():
    net = ResidualMLP(blocks=2, width=8)
    assert len([part for part in net.modules() if isinstance(part, nn.Linear)]) == 1 + 2 * 2 + 1
    example = (torch.randn(16, 64),)
    on_sums = {site.name for site in bnl.plan_insertion(net, example).inserted}
    on_branches = {site.name for site in bnl.plan_insertion(net, example, site="affine").inserted}
    assert on_sums == {"net.1", "net.2.act", "net.2.out", "net.3.act", "net.3.out"}
    assert {"net.2.second", "net.3.second"} <= on_branches
    assert not {"net.2.out", "net.3.out"} & on_branches


def test_it_learns(tmp_path, monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    problem = dataclasses.replace(residual_problem(), budget=Budget(max_steps=100, eval_every=50))
    study = Study(name="one", question="?", arms=(Arm(name="plain"),), reference="plain", problem=problem)
    run = execute(study, seeds=1, out=tmp_path, progress=False)
    curve = run.results[run.results["quantity"] == "test_accuracy"].set_index("step")["value"]
    assert curve[100] > curve[0] + 0.2


def test_a_folder_makes_it_mnist(tmp_path):
    problem = residual_problem(data_dir=tmp_path, blocks=2)
    assert (problem.name, problem.layer_of_interest) == ("residual_mnist", "net.3.second")
    assert problem.module().net[0].in_features == 784
