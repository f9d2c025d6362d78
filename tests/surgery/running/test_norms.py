from dataclasses import replace

import pytest
import torch
from cases import FunctionalMLP
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bn_lightning.errors import InsertionWarning
from bn_lightning.functional.batch_norm import batch_norm
from bn_lightning.surgery.attach import apply_plan
from bn_lightning.surgery.plan import NORMS
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.norm_modules import make_norm
from bn_lightning.surgery.running.norms import InsertedNorms

SITE = plan_insertion(FunctionalMLP(), (torch.randn(4, 5),)).inserted[0]


# With two values a channel a warning is due, which has its own test.
@settings(max_examples=40, deadline=None)
@given(data=st.data(), ndim=st.integers(2, 6))
def test_along_any_channel_axis_the_result_is_algorithm_1_over_the_other_axes(data, ndim):
    axis = data.draw(st.integers(-ndim, -1))
    smallest = 3 if ndim == 2 else 2
    shape = tuple(data.draw(st.lists(st.integers(smallest, 4), min_size=ndim, max_size=ndim)))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    site = replace(SITE, shape=shape, channels=shape[axis], channel_dim=axis)
    norms = InsertedNorms()
    norms.add(make_norm(site, "batch", x), site, after=False, kind="batch")
    channels_second = x.movedim(axis, 1)
    expected = batch_norm(channels_second, torch.ones(shape[axis]).double(), torch.zeros(shape[axis]).double())
    result = norms.normalize(0, x)
    torch.testing.assert_close(result, expected.y.movedim(1, axis))
    assert result.is_contiguous()


def test_a_factory_receives_rows_where_the_channels_are_not_on_axis_1():
    received = []

    class Noting(nn.Module):
        def forward(self, x):
            received.append(tuple(x.shape))
            return x

    for shape, axis in (((4, 5), -1), ((2, 3, 5), -1), ((2, 5, 3, 3), -3), ((2, 3, 3, 5), -1), ((2, 3, 5, 4), -2)):
        site = replace(SITE, shape=shape, channels=5, channel_dim=axis)
        norms = InsertedNorms()
        norms.add(Noting(), site, after=False)
        x = torch.randn(shape)
        assert torch.equal(norms.normalize(0, x), x)
    assert received == [(4, 5), (6, 5), (2, 5, 3, 3), (18, 5), (24, 5)]


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "instance"])
def test_other_channels_than_planned_are_told_with_the_site(norm):
    class Resizable(FunctionalMLP):
        def forward(self, x):
            return torch.relu(self.first(x)[:, : self.width] + 0)

        width = 7

    model = Resizable()
    plan = replace(plan_insertion(model, (torch.randn(6, 5),)).override("*", "insert"), norm=norm)
    apply_plan(model, plan)
    model.width = 4
    with pytest.raises((RuntimeError, ValueError)) as raised:
        model(torch.randn(6, 5))
    (note,) = raised.value.__notes__
    assert "the inserted norm 'relu_0', which was planned for 7 channels on axis -1" in note
    assert "received a tensor of shape (6, 4)" in note


class RMSNorm2d(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


BY_HAND = {
    "batch": nn.BatchNorm2d(8),
    "layer": nn.GroupNorm(1, 8),
    "group": nn.GroupNorm(8, 8),
    "instance": nn.InstanceNorm2d(8),
    "rms": RMSNorm2d(8),
}


# Of torch's RMSNorm, by hand too, where autocast hands it bfloat16 and its weight is float32.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_types_and_memory_formats_are_those_of_a_norm_written_by_hand(norm, dtype, memory_format):
    """Under autocast, and with the whole model in that type."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    x = torch.randn(4, 3, 6, 6).to(memory_format=memory_format)
    apply_plan(plain, replace(plan_insertion(plain, (x,)), norm=norm))
    plain.to(memory_format=memory_format)
    seen = []
    plain[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.autocast("cpu", dtype=dtype):
        assert plain(x).dtype == dtype
        expected = BY_HAND[norm](nn.functional.conv2d(x, plain[0].weight, plain[0].bias))
    plain.to(dtype)(x.to(dtype))
    assert [value.dtype for value in seen] == [expected.dtype, dtype]
    if norm != "rms":  # by hand its channels are moved and stay so; ours keeps one block, for views
        assert [value.stride() for value in seen] == [expected.stride()] * 2
    if norm != "instance":  # torch's own gives that up
        assert all(value.is_contiguous(memory_format=memory_format) for value in seen)


def test_an_instance_norm_from_a_factory_takes_one_position_too():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(6, 3, 8, 8)
    apply_plan(model, plan_insertion(model, (x,), norm=nn.InstanceNorm2d), norm=nn.InstanceNorm2d)
    expected = nn.functional.instance_norm(nn.functional.conv2d(x, model[0].weight, model[0].bias))
    torch.testing.assert_close(model[:2](x), expected.relu())
    with pytest.warns(InsertionWarning, match="InstanceNorm2d at '1' received 1 value per channel and sample"):
        assert model(torch.randn(6, 3, 3, 3)).shape == (6, 2, 1, 1)
