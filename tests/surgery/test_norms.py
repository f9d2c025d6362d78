from dataclasses import replace

import pytest
import torch
from cases import FunctionalMLP
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bn_lightning.functional.batch_norm import batch_norm
from bn_lightning.surgery.norms import InsertedNorms, is_untouched, make_norm
from bn_lightning.surgery.planning import plan_insertion

SITE = plan_insertion(FunctionalMLP(), (torch.randn(4, 5),)).inserted[0]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), ndim=st.integers(2, 5))
def test_along_any_channel_axis_the_result_is_algorithm_1_over_the_other_axes(data, ndim):
    axis = data.draw(st.integers(-ndim, -1))
    shape = tuple(data.draw(st.lists(st.integers(2, 4), min_size=ndim, max_size=ndim)))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    site = replace(SITE, shape=shape, channels=shape[axis], channel_dim=axis)
    norms = InsertedNorms()
    norms.add(make_norm(site, "batch", x), site, after=False)
    channels_second = x.movedim(axis, 1)
    expected = batch_norm(channels_second, torch.ones(shape[axis]).double(), torch.zeros(shape[axis]).double())
    torch.testing.assert_close(norms.normalize(0, x), expected.y.movedim(1, axis))


@pytest.mark.parametrize(
    ("ndim", "kind"), [(2, nn.BatchNorm1d), (3, nn.BatchNorm1d), (4, nn.BatchNorm2d), (5, nn.BatchNorm3d)]
)
def test_the_kind_follows_the_number_of_axes(ndim, kind):
    shape = (2,) * ndim
    assert type(make_norm(replace(SITE, shape=shape, channels=2, channel_dim=1 - ndim), "batch", None)) is kind


def test_a_norm_that_was_never_trained_is_known():
    norm = nn.BatchNorm1d(3)
    assert is_untouched(norm)
    assert is_untouched(nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    norm(torch.randn(4, 3))
    assert not is_untouched(norm)
    assert not is_untouched(nn.LayerNorm(3))
