import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.analysis.problems.inception import inception_problem
from bn_lightning.analysis.problems.inception_model import Inception
from bn_lightning.analysis.problems.inception_net import InceptionModule, InceptionNet


def kinds(model, kind):
    return [part for part in model.modules() if isinstance(part, kind)]


def test_a_module_has_four_branches_in_the_papers_proportions():
    torch.manual_seed(0)
    module = InceptionModule(6, 3)
    images = torch.randn(2, 6, 5, 5)
    branches = [module.by_1(images), module.by_3(images), module.by_5(images), module.by_pool(images)]
    assert [branch.shape[1] for branch in branches] == [6, 6, 9, 3]
    assert torch.equal(module(images), torch.cat(branches, 1))
    sizes = [[layer.kernel_size[0] for layer in kinds(branch, nn.Conv2d)] for branch in module.children()]
    assert sizes == [[1], [1, 3], [1, 3, 3], [1]]


def test_two_3x3_see_as_far_as_one_5x5():
    module = InceptionModule(1, 1)
    for layer in kinds(module.by_5, nn.Conv2d):
        nn.init.constant_(layer.weight, 1.0)
        nn.init.zeros_(layer.bias)
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    seen = module.by_5(dot)[0, 0].nonzero()
    assert (seen.min(), seen.max()) == (2, 6)


@pytest.mark.parametrize("pixels", [64, 784])
def test_the_network_holds_what_the_recipe_takes_out_and_no_norm(pixels):
    net = InceptionNet(pixels=pixels, width=1)
    assert [layer.p for layer in kinds(net, nn.Dropout)] == [0.4, 0.7]
    assert len(kinds(net, nn.LocalResponseNorm)) == 2
    assert not kinds(net, nn.BatchNorm1d) + kinds(net, nn.BatchNorm2d)
    logits, auxiliary = net.eval().both_heads(torch.rand(3, pixels))
    assert logits.shape == auxiliary.shape == (3, 10)


def test_both_heads_and_the_forward_agree():
    net = InceptionNet(width=2).eval()
    images = torch.rand(4, 64)
    assert_close(net(images), net.both_heads(images)[0])


def test_sizes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="square and 4 × 4 or larger, which 60 pixels are not"):
        InceptionNet(pixels=60)
    with pytest.raises(ValueError, match=r"Dropout is from 0 to 0\.7, .* got 0\.8"):
        InceptionNet(dropout=0.8)


def test_the_loss_adds_the_auxiliary_heads():
    torch.manual_seed(0)
    model = Inception(width=1, auxiliary_weight=0.25).eval()
    images, classes = torch.rand(5, 64), torch.tensor([1, 2, 3, 4, 5])
    logits, auxiliary = model.net.both_heads(images)
    expected = F.cross_entropy(logits, classes) + 0.25 * F.cross_entropy(auxiliary, classes)
    assert_close(model.training_step((images, classes), 0), expected)


def test_the_rate_falls_by_four_per_cent_in_eight_epochs():
    model = Inception(width=1, lr=0.5, weight_decay=0.01)
    made = model.configure_optimizers()
    (group,) = made["optimizer"].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 0.01)
    for _ in range(8):
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert group["lr"] == pytest.approx(0.5 * 0.96)


def test_the_problem_names_its_data_and_its_module_takes_options(monkeypatch, tmp_path):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    problem = inception_problem(evaluate="validation", lr=0.2, width=1)
    assert (problem.name, problem.monitor, problem.target) == ("digits_inception", "validation_accuracy", None)
    assert (problem.module().lr, problem.module(lr=0.5).lr) == (0.2, 0.5)
    assert problem.module().example_input_array is None
    assert problem.data().evaluate == "validation"
    assert inception_problem(data_dir=tmp_path).name == "mnist_inception"
    assert inception_problem(data_dir=tmp_path, width=1).module()(torch.zeros(2, 784)).shape == (2, 10)
