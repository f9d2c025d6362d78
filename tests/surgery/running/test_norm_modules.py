from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import FunctionalMLP
from torch import nn

from bn_lightning.errors import NormOptionError
from bn_lightning.surgery.plan import NORMS
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.norm_kinds import options_of
from bn_lightning.surgery.running.norm_modules import cancels_bias, is_untouched, make_norm
from bn_lightning.surgery.running.norms import InsertedNorms

SITE = plan_insertion(FunctionalMLP(), (torch.randn(4, 5),)).inserted[0]
SHAPES = {"NC": (6, 64), "NCL": (5, 8, 7), "NCHW": (4, 8, 3, 5), "NCDHW": (3, 4, 2, 3, 2), "BTC": (4, 6, 64)}


def site_of(layout: str):
    shape = SHAPES[layout]
    axis = -1 if layout in ("NC", "BTC") else 1 - len(shape)
    return replace(SITE, shape=shape, channels=shape[axis], channel_dim=axis)


def reduced_axes(norm: str, layout: str) -> tuple[int, ...]:
    """The axes of the docstring's table, by hand."""
    tokens, space = layout == "BTC", tuple(range(2, len(SHAPES[layout])))
    return {
        "batch": (0, 1) if tokens else (0, *space),
        "layer": (2,) if tokens else (1, *space),
        "instance": (1,) if tokens else space,
        "rms": (2,) if tokens else (1,),
    }[norm]


def normalised(x, axes, *, centre=True, eps=1e-5):
    mean = x.mean(axes, keepdim=True) if centre else 0
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + eps).sqrt()


def through(norm: str, site, x, options=None):
    norms = InsertedNorms().to(x.dtype)
    norms.add(make_norm(site, norm, x, options), site, after=False, kind=norm)
    return norms.normalize(0, x)


# An instance norm has nothing to reduce in (N, C); it is refused there, see below.
@pytest.mark.parametrize(
    ("norm", "layout"),
    [pair for pair in product(("batch", "layer", "instance", "rms"), SHAPES) if pair != ("instance", "NC")],
)
def test_each_norm_reduces_the_axes_of_the_table(norm, layout):
    x = torch.randn(SHAPES[layout], dtype=torch.float64) + 3
    eps = torch.finfo(torch.float64).eps if norm == "rms" else 1e-5
    expected = normalised(x, reduced_axes(norm, layout), centre=norm != "rms", eps=eps)
    torch.testing.assert_close(through(norm, site_of(layout), x), expected)


@pytest.mark.parametrize("layout", SHAPES)
def test_a_group_norm_reduces_the_channels_of_a_group_and_space(layout):
    site, groups = site_of(layout), 4 if layout in ("NC", "BTC") else 2
    x = torch.randn(SHAPES[layout], dtype=torch.float64) + 3
    second = x.movedim(site.channel_dim, 1)
    parts = second.unflatten(1, (groups, -1))
    axes = (2,) if layout in ("NC", "BTC") else tuple(range(2, parts.ndim))
    expected = normalised(parts, axes).flatten(1, 2).movedim(1, site.channel_dim)
    torch.testing.assert_close(through("group", site, x, {"num_groups": groups}), expected)


@pytest.mark.parametrize(
    ("layout", "channels", "groups"),
    [("NCHW", 64, 32), ("NCHW", 48, 16), ("NCHW", 7, 1), ("NC", 64, 4), ("BTC", 512, 32), ("NC", 32, 2), ("NC", 24, 1)],
)
def test_groups_by_default(layout, channels, groups):
    site = site_of(layout)
    shape = tuple(channels if axis == len(site.shape) + site.channel_dim else n for axis, n in enumerate(site.shape))
    made = make_norm(replace(site, shape=shape, channels=channels), "group", None)
    assert made.num_groups == groups
    assert channels % groups == 0


def test_groups_that_cannot_be():
    with pytest.raises(NormOptionError, match=r"num_groups=3 does not divide the 8 channels of the site 'relu_0'.*8"):
        make_norm(site_of("NCHW"), "group", None, {"num_groups": 3})
    with pytest.raises(NormOptionError, match=r"num_groups=64 leaves one channel in each group of the site 'relu_0'"):
        make_norm(site_of("NC"), "group", None, {"num_groups": 64})


def test_an_instance_norm_of_features_is_refused():
    with pytest.raises(NormOptionError, match=r"the site 'relu_0' has neither \(shape \(6, 64\)\)"):
        make_norm(site_of("NC"), "instance", None)


def test_channels_on_an_axis_in_the_middle():
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    site = replace(SITE, shape=tuple(x.shape), channels=4, channel_dim=-2)
    for norm, axes in (("batch", (0, 1, 3)), ("layer", (2,)), ("instance", (1, 3))):
        result = through(norm, site, x)
        torch.testing.assert_close(result, normalised(x, axes))
        assert result.is_contiguous()


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "rms"])
def test_an_image_without_a_batch_axis_and_one_with_two(norm):
    site, x = site_of("NCHW"), torch.randn(2, 3, 8, 3, 5, dtype=torch.float64)
    together = through(norm, site, x)
    torch.testing.assert_close(together[1, 2], through(norm, site, x[1, 2]))
    torch.testing.assert_close(together[1], through(norm, site, x[1]))


@pytest.mark.parametrize("norm", NORMS)
def test_one_name_for_scale_and_shift(norm):
    site = site_of("NCHW")
    with_parameters = make_norm(site, norm, None, {"affine": True})
    without = make_norm(site, norm, None, {"affine": False})
    assert with_parameters.weight.shape == (8,)
    assert not list(without.parameters())
    assert "affine" in options_of(norm)
    assert "elementwise_affine" not in options_of(norm)


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("batch", {"momentum": None, "eps": 1e-3, "track_running_stats": False}),
        ("layer", {"eps": 0.1}),
        ("group", {"num_groups": 2, "eps": 0.5}),
        ("instance", {"track_running_stats": True, "momentum": 0.3}),
        ("rms", {"eps": None}),
    ],
)
def test_options_reach_the_norm(norm, options):
    made = make_norm(site_of("NCHW"), norm, None, options)
    assert {name: getattr(made, name) for name in options} == options


def test_which_norms_cancel_a_bias():
    x, bias = torch.randn(4, 8, 3, 5, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    for norm in NORMS:
        for options in ({}, {"num_groups": 8}) if norm == "group" else ({},):
            site = site_of("NCHW")
            same = torch.allclose(
                through(norm, site, x, options), through(norm, site, x + bias.view(1, 8, 1, 1), options)
            )
            # By default eight channels make eight groups of one.
            assert cancels_bias(make_norm(site, norm, None, options)) == same, norm


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_that_was_never_trained_is_known(norm):
    made = make_norm(site_of("NCHW"), norm, None, {"affine": True})
    assert is_untouched(made)
    with torch.no_grad():
        made.weight[0] = 2
    assert not is_untouched(made)


def test_a_norm_that_training_does_not_change_counts_as_trained():
    assert is_untouched(nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    assert not is_untouched(nn.LayerNorm(3, elementwise_affine=False))
    assert not is_untouched(nn.Linear(3, 3))
    seen = nn.BatchNorm1d(3)
    seen(torch.randn(4, 3))
    assert not is_untouched(seen)


@pytest.mark.parametrize(
    ("ndim", "kind"), [(2, nn.BatchNorm1d), (3, nn.BatchNorm1d), (4, nn.BatchNorm2d), (5, nn.BatchNorm3d)]
)
def test_the_class_follows_the_number_of_axes(ndim, kind):
    shape = (2,) * ndim
    assert type(make_norm(replace(SITE, shape=shape, channels=2, channel_dim=1 - ndim), "batch", None)) is kind


@pytest.mark.parametrize("norm", ["batch", nn.BatchNorm1d])
def test_norms_are_made_for_training_where_the_layer_is_whatever_is_on_around(norm):
    with torch.inference_mode(), torch.device("meta"):
        made = make_norm(SITE, norm, torch.zeros(3, dtype=torch.float64, device="cpu"))
    assert (made.weight.device.type, made.weight.dtype) == ("cpu", torch.float64)
    made(torch.randn(4, SITE.channels, dtype=torch.float64)).sum().backward()
    assert int(made.num_batches_tracked) == 1
    assert made.weight.grad is not None


def test_a_norm_without_values_is_as_it_was_made():
    assert is_untouched(nn.BatchNorm1d(3, device="meta"))


@pytest.mark.parametrize("made", [None, nn.BatchNorm1d])
def test_a_factory_makes_modules(made):
    with pytest.raises(NormOptionError, match=r"norm factory made .* for the 7 channels of the site 'relu_0'"):
        make_norm(SITE, lambda channels: made, None)
