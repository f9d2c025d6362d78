"""Gradient distances against NumPy in float64; activation distances against scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from bn_lightning.functional.covariate_shift import activation_shift, gradient_shift

LAWS = settings(max_examples=40, deadline=None)
SHAPES = ((4, 3), (4,))


def gradients(seed, shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def samples(seed, n=50, c=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator, dtype=torch.float64).exp()


@LAWS
@given(seed=st.integers(0, 2**31), step=st.floats(1e-6, 10))
def test_gradient_shift_is_what_numpy_computes(seed, step):
    before, after = gradients(seed), gradients(seed + 1)
    g, h = (np.concatenate([part.numpy().ravel() for part in parts]) for parts in (before, after))
    shift = gradient_shift(before, after, step=step)
    relative = np.linalg.norm(g - h) / np.linalg.norm(g)
    cosine = g @ h / (np.linalg.norm(g) * np.linalg.norm(h))
    found = (shift.distance, shift.relative, shift.per_unit_step, shift.cosine)
    assert found == pytest.approx((np.linalg.norm(g - h), relative, relative / step, cosine), rel=1e-10)
    assert shift.state == ""


@LAWS
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_relative_shift_and_cosine_do_not_depend_on_the_unit(seed, scale):
    plain = gradient_shift(gradients(seed), gradients(seed + 1))
    scaled = gradient_shift(gradients(seed, scale=scale), gradients(seed + 1, scale=scale))
    assert scaled.relative == pytest.approx(plain.relative)
    assert scaled.cosine == pytest.approx(plain.cosine)
    assert scaled.distance == pytest.approx(scale * plain.distance)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-160, 1e170, 1e300])
@pytest.mark.parametrize("change", [0.01, 1.0])
def test_gradients_whose_squares_leave_float64_are_neither_dead_nor_non_finite(scale, change):
    g, h = gradients(0), [part + change * other for part, other in zip(gradients(0), gradients(1), strict=True)]
    plain = gradient_shift(g, h)
    scaled = gradient_shift([scale * part for part in g], [scale * part for part in h])
    assert scaled.state == ""
    assert scaled.relative == pytest.approx(plain.relative)
    assert scaled.cosine == pytest.approx(plain.cosine)
    assert scaled.distance == pytest.approx(scale * plain.distance, rel=1e-9, abs=0)


@LAWS
@given(seed=st.integers(0, 2**31))
def test_equal_gradients_have_no_shift_and_cosine_1_exactly(seed):
    shift = gradient_shift(gradients(seed), gradients(seed), step=0.0)
    assert (shift.distance, shift.relative, shift.cosine, shift.state) == (0.0, 0.0, 1.0, "")
    assert math.isnan(shift.per_unit_step)


def test_opposite_gradients_have_cosine_minus_1():
    g = gradients(0)
    assert gradient_shift(g, [-part for part in g]).cosine == pytest.approx(-1)


def test_a_small_angle_keeps_its_digits():
    angle = 1e-6
    shift = gradient_shift([torch.tensor([1.0, 0.0]).double()], [torch.tensor([math.cos(angle), math.sin(angle)])])
    assert 1 - shift.cosine == pytest.approx(angle**2 / 2, rel=1e-3)  # the second gradient is float32


def test_a_dead_layer_is_nan_and_says_so():
    shift = gradient_shift([torch.zeros(3)], [torch.zeros(3)], step=1.0)
    assert shift.state == "dead"
    assert all(math.isnan(x) for x in (shift.distance, shift.relative, shift.per_unit_step, shift.cosine))
    assert gradient_shift([torch.zeros(3)], [torch.ones(3)]).state == "dead"


def test_a_layer_that_the_step_killed_has_no_direction_any_more():
    shift = gradient_shift([torch.tensor([3.0, 4.0])], [torch.zeros(2)], step=2.0)
    assert (shift.distance, shift.relative, shift.per_unit_step, shift.state) == (5.0, 1.0, 0.5, "died")
    assert math.isnan(shift.cosine)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_are_nan_and_say_so(bad):
    shift = gradient_shift([torch.ones(2)], [torch.tensor([1.0, bad])])
    assert shift.state == "non-finite"
    assert math.isnan(shift.relative)
    assert math.isnan(shift.cosine)


def test_huge_float32_gradients_do_not_overflow():
    shift = gradient_shift([torch.full((2,), 1e30)], [torch.full((2,), 2e30)])
    assert shift.relative == pytest.approx(1)
    assert shift.cosine == pytest.approx(1)


def test_gradients_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got \[\(2,\)\] before and \[\(3,\)\] after"):
        gradient_shift([torch.ones(2)], [torch.ones(3)])
    with pytest.raises(ValueError, match="equal shapes, a tensor for each parameter"):
        gradient_shift([], [])


@LAWS
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40))
def test_wasserstein_is_scipys_per_unit(seed, n):
    before, after = samples(seed, n), samples(seed + 1, n)
    shift = activation_shift(before, after)
    expected = [scipy.stats.wasserstein_distance(before[:, c].numpy(), after[:, c].numpy()) for c in range(3)]
    pooled = np.sqrt((before.numpy().var(0) + after.numpy().var(0)) / 2)
    assert_close(shift.wasserstein, torch.tensor(expected, dtype=torch.float64))
    assert_close(shift.wasserstein_normalised, torch.from_numpy(np.array(expected) / pooled))


def test_moment_deltas_and_kl_have_their_closed_forms():
    before, after = samples(0), samples(1)
    shift = activation_shift(before, after)
    a, b = before.numpy(), after.numpy()
    assert_close(shift.mean_delta, torch.from_numpy(abs(b.mean(0) - a.mean(0))))
    assert_close(shift.variance_delta, torch.from_numpy(abs(b.var(0) - a.var(0))))
    p, q = (torch.distributions.Normal(torch.from_numpy(x.mean(0)), torch.from_numpy(x.std(0))) for x in (b, a))
    assert_close(shift.gaussian_kl, torch.distributions.kl_divergence(p, q))


@LAWS
@given(seed=st.integers(0, 2**31), offset=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_shift_and_scale_act_as_they_must(seed, offset, scale):
    x, y = samples(seed), samples(seed + 1)
    plain, moved = activation_shift(x, y), activation_shift(scale * x + offset, scale * y + offset)
    assert_close(moved.wasserstein, scale * plain.wasserstein)
    assert_close(moved.wasserstein_normalised, plain.wasserstein_normalised)
    assert_close(moved.gaussian_kl, plain.gaussian_kl)
    assert_close(activation_shift(x, x + offset).wasserstein, torch.full((3,), abs(offset), dtype=torch.float64))


def test_a_constant_unit_is_dead_not_perfect():
    x, y = samples(0), samples(1)
    x[:, 1] = y[:, 1] = 0.1
    shift = activation_shift(x, y)
    assert shift.wasserstein[1] == 0
    assert shift.wasserstein_normalised.isnan().tolist() == [False, True, False]
    assert shift.gaussian_kl.isnan().tolist() == [False, True, False]
    numbers = shift.numbers()
    assert numbers["dead_units"] == 1
    assert numbers["wasserstein_normalised"] == pytest.approx(shift.wasserstein_normalised[[0, 2]].mean().item())
    assert numbers["wasserstein"] == pytest.approx(shift.wasserstein.mean().item())
    assert math.isnan(activation_shift(x[:, 1:2], y[:, 1:2]).numbers()["wasserstein_normalised"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_unit_is_nan_in_every_distance(bad):
    x, y = samples(0), samples(1)
    y[4, 2] = bad
    shift = activation_shift(x, y)
    for name in ("wasserstein", "wasserstein_normalised", "mean_delta", "variance_delta", "gaussian_kl"):
        assert getattr(shift, name).isnan().tolist() == [False, False, True]
    numbers = shift.numbers()
    assert numbers["dead_units"] == 0
    assert all(math.isnan(value) for name, value in numbers.items() if name != "dead_units")


def test_different_probe_sets_are_refused():
    with pytest.raises(ValueError, match=r"shape \(50, 3\) and \(49, 3\); run one fixed probe set"):
        activation_shift(samples(0), samples(1, 49))
    with pytest.raises(ValueError, match="the same two or more samples"):
        activation_shift(samples(0, 1), samples(1, 1))
