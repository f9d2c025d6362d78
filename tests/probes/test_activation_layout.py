import math

import numpy as np
import pytest
import torch

from bn_lightning.probes.activation_layout import ActivationLayout


def numbered_tensor(kind, dtype):
    x = torch.arange(8 * 6 * 5 * 4, dtype=dtype).reshape(8, 6, 5, 4)
    if kind == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, :, ::2, ::3] if kind == "with gaps" else x


@pytest.mark.parametrize("kind", ["contiguous", "channels last", "with gaps"])
# bfloat16 holds whole numbers up to 256 only, which leaves channels of 20 elements apart but for rounding.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("size", [None, 24, 3])
def test_elements_are_of_the_channels_said_and_all_come_in_a_turn(kind, dtype, axis, size):
    x = numbered_tensor(kind, dtype)
    channels = x.shape[axis]
    layout = ActivationLayout(x, axis, channels=channels, max_elements=size)
    seen = set()
    for call in range(math.ceil(layout.elements / layout.size)):
        values, channel = np.asarray(layout.read(x, call)), layout.channels_of(call)
        assert len(values) == len(channel) == layout.size
        for value, of_channel in zip(values.tolist(), channel.tolist(), strict=True):
            assert value in x.select(axis, of_channel)
        seen.update(values.tolist())
    assert seen == set(x.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [None, 24])
def test_what_was_read_does_not_change_with_the_tensor(dtype, size):
    x = torch.ones(8, 6, 5, 4, dtype=dtype)
    values = ActivationLayout(x, 1, channels=6, max_elements=size).read(x, 0)
    x.zero_()
    assert np.asarray(values).min() == 1
    assert np.asarray(values).dtype == np.float32


@pytest.mark.parametrize("kind", ["contiguous", "channels last", "with gaps"])
@pytest.mark.parametrize("repeats", [1, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nonfinite_elements_are_counted_by_channel(kind, repeats, dtype):
    x = numbered_tensor(kind, torch.float32).to(dtype)
    x = x.repeat(repeats, 1, 1, 1).to(memory_format=torch.preserve_format)
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    layout = ActivationLayout(x, 1, channels=6, max_elements=24)
    assert layout.nonfinite(x) is None
    x[0, 2, 1, 1], x[3, 2, 0, 0], x[5, 4, 0, 1] = torch.inf, -torch.inf, torch.nan
    assert layout.nonfinite(x).tolist() == [0, 0, 2, 0, 1, 0]


def test_finite_elements_whose_squares_overflow_are_no_alarm():
    x = torch.full((5, 3), 3e38)
    assert ActivationLayout(x, 1, channels=3, max_elements=None).nonfinite(x).tolist() == [0, 0, 0]
