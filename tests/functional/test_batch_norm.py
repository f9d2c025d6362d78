"""Algorithm 1, its backward and the inference transform against torch's layers and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from bn_lightning.functional.batch_norm import batch_norm, batch_norm_backward, batch_norm_inference

LAYERS = {
    (6, 3): nn.BatchNorm1d,
    (4, 3, 5): nn.BatchNorm1d,
    (3, 2, 4, 5): nn.BatchNorm2d,
    (2, 3, 2, 3, 4): nn.BatchNorm3d,
}
LAWS = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def layer_and_input(shape, dtype=torch.float64, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) - 2).to(dtype)
    layer = LAYERS[shape](shape[1], dtype=dtype, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(shape[1], generator=generator))
        layer.bias.copy_(torch.randn(shape[1], generator=generator))
    return layer, x


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_forward_equals_torchs_layer_in_training(shape, dtype, eps):
    layer, x = layer_and_input(shape, dtype, eps=eps, momentum=1.0)
    output = batch_norm(x, layer.weight, layer.bias, eps=eps)
    assert_close(layer(x), output.y)
    m = x.numel() / shape[1]
    assert_close(layer.running_mean, output.mean)
    assert_close(layer.running_var, output.variance * m / (m - 1))


@pytest.mark.parametrize("shape", LAYERS)
def test_inference_equals_torchs_layer_in_evaluation(shape):
    layer, x = layer_and_input(shape)
    for _ in range(3):
        layer(x)
    layer.eval()
    y = batch_norm_inference(x, layer.weight, layer.bias, layer.running_mean, layer.running_var, eps=layer.eps)
    assert_close(layer(x), y)


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_closed_form_backward_equals_autograd(shape, eps):
    layer, x = layer_and_input(shape, eps=eps)
    x.requires_grad_()
    grad_y = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer(x).backward(grad_y)
    gradients = batch_norm_backward(grad_y, x.detach(), layer.weight.detach(), eps=eps)
    assert_close(gradients.x, x.grad)
    assert_close(gradients.gamma, layer.weight.grad)
    assert_close(gradients.beta, layer.bias.grad)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)])
def test_closed_form_backward_equals_finite_differences(shape):
    layer, x = layer_and_input(shape)
    gamma, beta = layer.weight.detach(), layer.bias.detach()
    grad_y = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = batch_norm_backward(grad_y, x, gamma)
    step = 1e-5
    numeric = torch.empty_like(x)
    for index in range(x.numel()):
        shift = torch.zeros_like(x).view(-1).index_fill(0, torch.tensor([index]), step).view(shape)
        up, down = batch_norm(x + shift, gamma, beta).y, batch_norm(x - shift, gamma, beta).y
        numeric.view(-1)[index] = ((up - down) * grad_y).sum() / (2 * step)
    # Central differences are off by O(step²) times the third derivative.
    assert_close(gradients.x, numeric, rtol=1e-6, atol=1e-7)


@LAWS
@given(seed=seeds, shape=st.sampled_from(list(LAYERS)))
def test_output_has_mean_zero_and_variance_one(seed, shape):
    _, x = layer_and_input(shape, seed=seed)
    ones = torch.ones(shape[1], dtype=torch.float64)
    y = batch_norm(x, ones, 0 * ones, eps=0.0).y.transpose(0, 1).flatten(1)
    assert_close(y.mean(1), 0 * ones)
    assert_close(y.var(1, correction=0), ones)


@LAWS
@given(
    seed=seeds,
    shape=st.sampled_from(list(LAYERS)),
    shift=st.floats(-50, 50),
    scale=st.floats(0.02, 50),
)
def test_shift_and_positive_scale_of_the_input_do_not_matter(seed, shape, shift, scale):
    layer, x = layer_and_input(shape, seed=seed)
    gamma, beta = layer.weight.detach(), layer.bias.detach()
    moved = batch_norm(scale * x + shift, gamma, beta, eps=0.0).y
    # Adding the shift rounds x at the shift's own magnitude.
    assert_close(moved, batch_norm(x, gamma, beta, eps=0.0).y, rtol=1e-7, atol=1e-7 * (1 + abs(shift) / scale))


@LAWS
@given(seed=seeds, shape=st.sampled_from(list(LAYERS)))
def test_input_gradient_is_orthogonal_to_shift_and_scale_of_the_input(seed, shape):
    layer, x = layer_and_input(shape, seed=seed)
    grad_y = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    grad_x = batch_norm_backward(grad_y, x, layer.weight.detach(), eps=0.0).x
    axes = [axis for axis in range(len(shape)) if axis != 1]
    zeros = torch.zeros(shape[1], dtype=torch.float64)
    assert_close(grad_x.sum(axes), zeros)
    assert_close((grad_x * x).sum(axes), zeros)
