"""Eigenvalues and trace against the dense float64 Hessian, in both modes of the norms."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from bn_lightning.probes.curvature import hessian_eigenvalues, hessian_trace


def network(norm=True, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)
    ).double()
    if norm:
        model[1].running_mean += 0.3
        model[1].running_var *= 0.2
    return model


def batch(n=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def dense_hessian(model, batches, patterns=lambda name: True):
    """torch's own reverse-over-reverse Hessian of a copy, as one matrix."""
    twin = copy.deepcopy(model)
    samples = sum(len(part[0]) for part in batches)
    names = [name for name, _ in twin.named_parameters() if patterns(name)]
    values = {name: value.detach() for name, value in twin.named_parameters()}
    shapes = [values[name].shape for name in names]
    theta = torch.cat([values[name].flatten() for name in names])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        point = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return sum(
            len(x) / samples * F.cross_entropy(functional_call(twin, {**values, **point}, (x,)), y) for x, y in batches
        )

    return torch.autograd.functional.hessian(loss, theta).numpy()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("keep_graphs", [True, False])
def test_eigenvalues_are_those_of_the_dense_hessian_in_both_modes(mode, keep_graphs):
    model, batches = network(), [batch(), batch(12, seed=2)]
    expected = np.linalg.eigvalsh(dense_hessian(copy.deepcopy(model).train(mode == "train"), batches))[::-1]
    found = hessian_eigenvalues(
        model, batches, loss_fn=loss_fn, num_eigenvalues=3, norm_mode=mode, tolerance=1e-10, keep_graphs=keep_graphs
    )
    # The method stops at this relative tolerance.
    assert found.eigenvalues == pytest.approx(expected[:3], rel=1e-8)
    assert max(found.residuals) < 1e-6
    assert (found.samples, found.norm_mode, found.state) == (42, mode, "")
    assert found.products > 3


def test_the_modes_differ_and_none_is_the_present_one():
    model = network()
    values = {
        mode: hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, norm_mode=mode).eigenvalues[0]
        for mode in ("train", "eval", None)
    }
    assert values["train"] == values[None]
    assert values["train"] != pytest.approx(values["eval"], rel=0.1)
    assert hessian_eigenvalues(model.eval(), [batch()], loss_fn=loss_fn).eigenvalues[0] == values["eval"]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_trace_is_that_of_the_dense_hessian(mode):
    model = network()
    dense = dense_hessian(copy.deepcopy(model).train(mode == "train"), [batch()])
    found = hessian_trace(model, [batch()], loss_fn=loss_fn, num_samples=400, norm_mode=mode)
    assert abs(found.trace - np.trace(dense)) < 4 * found.error
    off_diagonal = dense - np.diag(np.diag(dense))
    # The variance of zᵀHz is twice the squared off-diagonal part.
    assert found.error == pytest.approx((2 * (off_diagonal**2).sum() / 400) ** 0.5, rel=0.25)
    assert found.products == 400


def test_whole_spectra_of_small_problems_come_out():
    model = network(norm=False)
    dense = dense_hessian(model, [batch()], lambda name: name == "4.bias")
    found = hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, num_eigenvalues=3, parameters="4.bias")
    assert found.eigenvalues == pytest.approx(np.linalg.eigvalsh(dense)[::-1], abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [3, 7])
def test_repeated_eigenvalues_come_out_as_often_as_there_are(sign, count):
    torch.manual_seed(0)
    model, x = nn.Linear(10, 5).double(), torch.randn(40, 10, dtype=torch.float64)
    # Each output has the same Hessian, so each of the eigenvalues comes five times.
    inputs = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    expected = np.sort(np.repeat(sign * np.linalg.eigvalsh(2 / 200 * (inputs.T @ inputs).numpy()), 5))[::-1]
    for seed in range(3):
        found = hessian_eigenvalues(
            model, [x], loss_fn=lambda m, x: sign * m(x).square().mean(), num_eigenvalues=count, seed=seed
        )
        assert found.eigenvalues == pytest.approx(expected[:count], rel=1e-3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nothing_of_the_model_moves(mode):
    model = network(dropout=0.3)
    model[1].train(mode != "train")
    modes = [part.training for part in model.modules()]
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, norm_mode=mode)
    hessian_trace(model, [batch()], loss_fn=loss_fn, norm_mode=mode, num_samples=2, keep_graphs=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert all(part.grad is None for part in model.parameters())


def test_dropout_masks_are_the_same_in_every_product():
    model = network(dropout=0.5)
    found = [
        hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, tolerance=1e-10, keep_graphs=keep).eigenvalues[0]
        for keep in (True, False)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-8)


def test_a_network_of_nan_has_nan_curvature():
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    found = hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, num_eigenvalues=2)
    assert found.state == "non-finite"
    assert [math.isnan(value) for value in (*found.eigenvalues, *found.residuals)] == [True] * 4
    assert math.isnan(hessian_trace(model, [batch()], loss_fn=loss_fn).trace)


@pytest.mark.parametrize("inputs", [3, 30])
def test_a_linear_loss_and_a_dead_network_are_not_curved(inputs):
    linear = nn.Linear(inputs, 1).double()
    dead = nn.Sequential(nn.Linear(inputs, 1), nn.ReLU()).double()
    nn.init.constant_(dead[0].bias, -1e3)
    x = torch.randn(4, inputs, dtype=torch.float64)
    for model in (linear, dead):
        options = {"loss_fn": lambda m, x: m(x).sum()}
        found = hessian_eigenvalues(model, [x], num_eigenvalues=2, **options)
        assert (found.eigenvalues, found.residuals, found.state) == ((0, 0), (0, 0), "")
        assert hessian_trace(model, [x], **options).trace == 0


@pytest.mark.parametrize("keep_graphs", [True, False])
def test_a_sparse_embedding_is_curved_like_a_dense_one(keep_graphs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    options = {"loss_fn": loss_fn, "num_eigenvalues": 2, "tolerance": 1e-10, "keep_graphs": keep_graphs}
    tokens = torch.randint(9, (30,)), torch.randint(3, (30,))
    found = []
    for model[0].sparse in (False, True):
        found.append(hessian_eigenvalues(model, [tokens], **options).eigenvalues)
    assert found[1] == pytest.approx(found[0], rel=1e-8)


def attention_loss(model, batch):
    # Attention's fused kernel has a first derivative only.
    h = model(batch[0])[None, None]
    return F.scaled_dot_product_attention(h, h, h).square().mean()


def test_what_cannot_be_computed_says_why():
    model = network()
    with pytest.raises(ValueError, match="has 63 eigenvalues, so 64 of them cannot be computed"):
        hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, num_eigenvalues=64)
    with pytest.raises(ValueError, match="norm_mode is 'train', 'eval' or None"):
        hessian_trace(model, [batch()], loss_fn=loss_fn, norm_mode="training")
    with pytest.raises(ValueError, match="needs two random vectors or more, got num_samples=1"):
        hessian_trace(model, [batch()], loss_fn=loss_fn, num_samples=1)
    with pytest.raises(RuntimeError, match=r"Only \d of 4 eigenvalues came out to the relative tolerance 1e-14"):
        hessian_eigenvalues(model, [batch()], loss_fn=loss_fn, num_eigenvalues=4, tolerance=1e-14, max_iterations=1)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented") as caught:
        hessian_eigenvalues(model, [batch()], loss_fn=attention_loss)
    assert "second derivative of the loss" in caught.value.__notes__[0]
