import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FunctionalMLP, ResidualNet
from torch import Tensor, nn

from bn_lightning.errors import BatchSizeError, InsertionWarning
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.insert import insert_batch_norm
from bn_lightning.surgery.planning import plan_insertion


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if "bn_lightning_norm." in name]


def with_norm(model: nn.Module, x: Tensor, norm: str, **options) -> nn.Module:
    apply_plan(model, replace(plan_insertion(model, (x,)), norm=norm, norm_options=options))
    return model


def test_one_sample_in_training_is_normalised_by_the_running_statistics():
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch")
    model(torch.randn(20, 5))
    twin, x = copy.deepcopy(model).eval(), torch.randn(1, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(InsertionWarning) as caught:
        output = model(x)
    assert len(caught) == 2  # one for each norm
    text = str(caught[0].message)
    assert "BatchNorm1d at 'relu_0' received 1 value per channel (shape (1, 7)), which has no variance" in text
    assert "drop_last=True" in text
    torch.testing.assert_close(output, twin(x))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(norm.training for norm in norms_of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).sum().backward()
        model(torch.randn(3, 5))
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [2, 2]


def test_without_running_statistics_one_sample_is_an_error_that_names_the_site():
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch", track_running_stats=False)
    for training in (True, False):
        message = "BatchNorm1d at 'relu_0' received 1 value per channel .*drop_last.*track_running_stats=True"
        with pytest.raises(BatchSizeError, match=message):
            model.train(training)(torch.randn(1, 5))


def test_two_values_a_channel_are_warned_of_once():
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch")
    with pytest.warns(InsertionWarning) as caught:
        model(torch.randn(2, 5))
    assert len(caught) == 2  # one for each norm
    text = str(caught[0].message)
    assert "BatchNorm1d at 'relu_0' received 2 values per channel (shape (2, 7))" in text
    assert "always −1 and 1" in text
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 5))
        model.eval()(torch.randn(2, 5))


def test_two_values_in_evaluation_mode_are_no_matter():
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 5))
        model(torch.randn(1, 5))


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms", "instance"])
def test_no_row_at_all_passes_and_every_parameter_has_a_gradient(norm):
    model, shape = (FunctionalMLP(), (6, 5)) if norm != "instance" else (ResidualNet(), (4, 3, 8, 8))
    with_norm(model, torch.randn(shape), norm, affine=True)
    output = model(torch.randn(0, *shape[1:]))
    assert output.shape[0] == 0
    output.sum().backward()
    for made in norms_of(model):
        assert torch.equal(made.weight.grad, torch.zeros_like(made.weight))
        assert int(getattr(made, "num_batches_tracked", None) or 0) == 0


@pytest.mark.parametrize("tracked", [True, False])
def test_an_instance_norm_with_one_position(tracked):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with_norm(model, torch.randn(4, 3, 8, 8), "instance", affine=True, track_running_stats=tracked)
    (norm,) = norms_of(model)
    model(torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        norm.weight.uniform_(1, 2)
        norm.bias.uniform_(1, 2)
    x = torch.randn(4, 3, 3, 3)
    done = "used its running statistics" if tracked else "only scaled and shifted it"
    with pytest.warns(InsertionWarning, match=rf"'1' received 1 value per channel and sample .*{done}"):
        found = model(x)
    hidden = F.conv2d(x, model[0].weight, model[0].bias)
    mean, variance = (norm.running_mean, norm.running_var) if tracked else (torch.zeros(4), torch.ones(4))
    # Without running statistics nothing is divided, so no eps either.
    expected = F.batch_norm(hidden, mean, variance, norm.weight, norm.bias, eps=norm.eps if tracked else 0.0)
    torch.testing.assert_close(found, model[2](F.relu(expected)))
    # In evaluation mode torch's own raises too, where it has no running statistics.
    assert model.eval()(x).shape == (4, 2, 1, 1)


def test_a_group_norm_with_one_channel_a_group_and_one_position():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with_norm(model, torch.randn(4, 3, 8, 8), "group", num_groups=4)
    with pytest.warns(InsertionWarning, match=r"GroupNorm at '1' received 1 value per group and sample"):
        found = model(torch.ones(1, 3, 3, 3))
    torch.testing.assert_close(
        found, model[2](F.relu(F.conv2d(torch.ones(1, 3, 3, 3), model[0].weight, model[0].bias)))
    )


class Mixture(nn.Module):
    """Each row goes to one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(3))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            output = output.index_add(0, (rows := (chosen == number).nonzero()[:, 0]), expert(x[rows]))
        return output


def test_experts_that_receive_one_token_or_none():
    model, chosen = Mixture(), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    insert_batch_norm(model, (torch.randn(9, 3), chosen))
    with pytest.warns(InsertionWarning, match="at 'experts.1.1' received 1 value per channel") as caught:
        model(torch.randn(9, 3), torch.tensor([0] * 8 + [1])).sum().backward()
    assert len(caught) == 1
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [1, 0, 0]
    assert all(norm.weight.grad is not None for norm in norms_of(model))


def test_it_costs_no_graph_break():
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch")
    twin = copy.deepcopy(model).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(1, 5)
    torch.testing.assert_close(compiled(x), twin(x))
    compiled(torch.randn(3, 5))
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [1, 1]


def test_who_replaced_the_forward_of_a_norm_is_asked_and_counts_small_batches_itself():
    """As recalibration does, which has a warning of its own."""
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch")
    received = []
    for norm in norms_of(model):
        norm.forward = lambda x: received.append(tuple(x.shape)) or x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(1, 5))
        model(torch.randn(2, 5))
    assert received == [(1, 7), (1, 6), (2, 7), (2, 6)]


def test_synchronised_norms_of_several_ranks_count_what_the_others_bring(monkeypatch):
    """Torch's own then takes one value a rank, and must be called, as the others wait for it."""
    model = with_norm(FunctionalMLP(), torch.randn(6, 5), "batch")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    received = []

    def forward(self, x):
        received.append(tuple(x.shape))
        return x

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(1, 5))
        model(torch.randn(0, 5))
    assert received == [(1, 7), (1, 6), (0, 7), (0, 6)]
    assert all(norm.training for norm in norms_of(model))


def test_an_example_that_is_only_traced_is_not_warned_of():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    insert_batch_norm(model, (torch.randn(2, 4),))
    plan_insertion(model, (torch.randn(2, 4),))
    with pytest.warns(InsertionWarning, match="received 2 values per channel"):
        model(torch.randn(2, 4))
