import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bn_lightning as bnl
from bn_lightning.analysis.problems.linear_net import LinearData, LinearNet
from bn_lightning.errors import NoSiteError


def test_it_is_the_papers_network():
    torch.manual_seed(0)
    net = LinearNet()
    assert [tuple(layer.weight.shape) for layer in net.net] == [(10, 10)] * 25
    assert all((layer.bias == 0).all() for layer in net.net)
    # Glorot: a variance of 2/(10 + 10); 2,500 draws have a standard error of .1 · √(2/2500).
    weights = torch.cat([layer.weight.flatten() for layer in net.net])
    assert weights.var().item() == pytest.approx(0.1, abs=5 * 0.1 * (2 / 2500) ** 0.5)
    optimizer = net.configure_optimizers()
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.SGD, 1e-7)


def test_norms_come_behind_every_layer_but_the_last():
    net = LinearNet(norm=nn.BatchNorm1d, layers=4, width=3)
    assert [type(part) for part in net.net] == [nn.Linear, nn.BatchNorm1d] * 3 + [nn.Linear]
    assert net(torch.randn(5, 3)).shape == (5, 3)


def test_the_loss_is_a_sum_or_a_mean():
    batch = LinearData(samples=20).batch
    torch.manual_seed(0)
    net = LinearNet(layers=2)
    error = (net.net[1](net.net[0](batch[0])) - batch[1]).square()
    assert_close(net.training_step(batch, 0), error.sum())
    net.reduction = "mean"
    assert_close(net.training_step(batch, 0), error.mean())
    with pytest.raises(ValueError, match="reduced by 'sum' or 'mean', not 'max'"):
        LinearNet(reduction="max")


def test_targets_are_a_linear_map_of_the_inputs_and_the_data_is_one_batch():
    data = LinearData(seed=3)
    inputs, targets = data.batch
    assert inputs.shape == targets.shape == (1000, 10)
    fitted = inputs @ torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()
    assert_close(fitted, targets, rtol=1e-4, atol=1e-5)  # least squares of float32 targets
    (batch,) = data.train_dataloader()
    assert torch.equal(batch[0], inputs)
    assert torch.equal(LinearData(seed=3).batch[0], inputs)
    assert not torch.equal(LinearData(seed=4).batch[0], inputs)


def test_insertion_finds_no_nonlinearity_in_it():
    net = LinearNet(layers=3)
    with pytest.raises(NoSiteError, match="No nonlinearity was called"):
        bnl.insert_batch_norm(net, (net.example_input_array,))


def test_descent_lowers_the_validation_error(tmp_path):
    import pytorch_lightning as pl

    torch.manual_seed(0)
    net, data = LinearNet(lr=1e-5, layers=3), LinearData(samples=100)
    trainer = pl.Trainer(
        max_steps=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    before = trainer.validate(net, data, verbose=False)[0]["validation_mse"]
    trainer.fit(net, data)
    assert trainer.validate(net, data, verbose=False)[0]["validation_mse"] < before
