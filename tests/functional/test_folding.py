"""Each product of a norm and a layer against the two in turn, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.batch_norm import batch_norm_inference
from bn_lightning.functional.folding import Affine, fold_into_input, fold_into_output, inference_affine

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def norm(channels: int) -> dict[str, torch.Tensor]:
    return {
        "mean": doubles(channels),
        "variance": doubles(channels).square(),
        "gamma": doubles(channels),
        "beta": doubles(channels),
    }


def test_without_scale_and_shift_these_are_one_and_zero():
    mean, variance = doubles(3), doubles(3).square()
    bare = inference_affine(mean, variance)
    full = inference_affine(mean, variance, torch.ones(3).double(), torch.zeros(3).double())
    torch.testing.assert_close(bare.scale, full.scale)
    torch.testing.assert_close(bare.shift, full.shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arithmetic_is_in_float64_whatever_the_weights_are(dtype):
    weight, bias = doubles(4, 3).to(dtype), doubles(4).to(dtype)
    statistics = {name: value.to(dtype) for name, value in norm(4).items()}
    affine = inference_affine(**statistics)
    folded = fold_into_output(weight, bias, affine)
    scale = statistics["gamma"].double() / (statistics["variance"].double() + 1e-5).sqrt()
    torch.testing.assert_close(folded[0], weight.double() * scale[:, None])
    shift = statistics["beta"].double() - scale * statistics["mean"].double()
    torch.testing.assert_close(folded[1], bias.double() * scale + shift)
    onward = fold_into_input(weight, bias, Affine(scale[:3], shift[:3]), torch.arange(3))
    torch.testing.assert_close(onward[1], bias.double() + weight.double() @ shift[:3])


@settings(max_examples=80, deadline=None)
@given(
    spatial=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    has_bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_convolution_and_the_norm_behind_it_are_one_convolution(
    spatial, groups, per_group, kernel, stride, dilation, padding, has_bias, transposed, seed
):
    torch.manual_seed(seed)
    inputs, outputs = groups * per_group[0], groups * per_group[1]
    shape = (inputs, per_group[1]) if transposed else (outputs, per_group[0])
    weight, bias = doubles(*shape, *[kernel] * spatial), doubles(outputs) if has_bias else None
    convolve = (TRANSPOSED if transposed else CONVOLUTIONS)[spatial]
    options = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation}
    x, statistics = doubles(2, inputs, *[7] * spatial), norm(outputs)
    expected = batch_norm_inference(convolve(x, weight, bias, **options), **_ordered(statistics))
    folded = fold_into_output(weight, bias, inference_affine(**statistics), groups=groups, transposed=transposed)
    torch.testing.assert_close(convolve(x, *folded, **options), expected)


@settings(max_examples=80, deadline=None)
@given(
    spatial=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_norm_and_the_unpadded_convolution_behind_it_are_one_convolution(
    spatial, groups, per_group, kernel, stride, dilation, has_bias, seed
):
    torch.manual_seed(seed)
    inputs, outputs = groups * per_group[0], groups * per_group[1]
    weight, bias = doubles(outputs, per_group[0], *[kernel] * spatial), doubles(outputs) if has_bias else None
    options = {"stride": stride, "groups": groups, "dilation": dilation}
    x, statistics = doubles(2, inputs, *[7] * spatial), norm(inputs)
    expected = CONVOLUTIONS[spatial](batch_norm_inference(x, **_ordered(statistics)), weight, bias, **options)
    folded = fold_into_input(weight, bias, inference_affine(**statistics), torch.arange(inputs), groups=groups)
    torch.testing.assert_close(CONVOLUTIONS[spatial](x, *folded, **options), expected)


def test_a_linear_layer_behind_a_flattened_norm_takes_each_channel_where_it_arrives():
    x, statistics = doubles(5, 3, 2, 2), norm(3)
    weight, bias = doubles(4, 12), doubles(4)
    expected = F.linear(batch_norm_inference(x, **_ordered(statistics)).flatten(1), weight, bias)
    channels = torch.arange(3).repeat_interleave(4)
    folded = fold_into_input(weight, bias, inference_affine(**statistics), channels)
    torch.testing.assert_close(F.linear(x.flatten(1), *folded), expected)


def _ordered(statistics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: statistics[name] for name in ("gamma", "beta", "mean", "variance")}
