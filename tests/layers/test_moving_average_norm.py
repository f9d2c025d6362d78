import pytest
import torch
from torch import nn

from bn_lightning.layers.moving_average_norm import MovingAverageNorm
from bn_lightning.surgery.insert import insert_batch_norm


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5)])
def test_normalises_by_the_averages_of_the_batches_before_and_keeps_those_of_batch_norm(shape):
    torch.manual_seed(0)
    norm = MovingAverageNorm(3).double()
    peer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3).double()
    for _ in range(4):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 1
        expected = peer.eval()(x)
        peer.train()(x)
        torch.testing.assert_close(norm(x), expected)
        torch.testing.assert_close(norm.running_mean, peer.running_mean)
        torch.testing.assert_close(norm.running_var, peer.running_var)


def test_no_gradient_passes_through_the_averages():
    norm = MovingAverageNorm(2, affine=False)
    x = torch.randn(5, 2, requires_grad=True)
    norm(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, (1 + norm.eps) ** -0.5))


def test_without_momentum_the_averages_weigh_all_batches_alike():
    norm, batches = MovingAverageNorm(2, momentum=None), [torch.randn(8, 2) for _ in range(5)]
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean(0))


def test_evaluation_leaves_the_averages_alone():
    norm = MovingAverageNorm(2).eval()
    norm(torch.randn(4, 2))
    assert int(norm.num_batches_tracked) == 0


def test_refuses_other_channels():
    with pytest.raises(ValueError, match=r"takes \(N, 3, …\), got \(4, 2\)"):
        MovingAverageNorm(3)(torch.randn(4, 2))


def test_is_inserted_as_a_norm_factory():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(6, 4)
    insert_batch_norm(model, (x,), norm=MovingAverageNorm)
    (norm,) = [part for part in model.modules() if isinstance(part, MovingAverageNorm)]
    model(x)
    assert int(norm.num_batches_tracked) == 1
