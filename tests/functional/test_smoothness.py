"""Smoothness of a path against closed forms of quadratics, and what a bad point does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.smoothness import path_smoothness

STEPS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(curvature=st.floats(0.01, 100), steps=st.lists(st.floats(1e-3, 10), min_size=1, max_size=8))
def test_beta_of_a_quadratic_is_its_curvature(curvature, steps):
    d = torch.tensor(steps, dtype=torch.float64)
    found = path_smoothness(d, curvature * d.square() / 2, curvature * d)
    assert found.beta == pytest.approx(curvature)
    assert found.loss_range == pytest.approx(curvature / 2 * (max(steps) ** 2 - min(steps) ** 2))
    assert (found.predictiveness_min, found.predictiveness_max) == pytest.approx(
        (curvature * min(steps), curvature * max(steps))
    )


def test_beta_is_the_largest_ratio_not_the_last():
    found = path_smoothness(STEPS, STEPS, torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64))
    assert found.beta == 6.0
    assert (found.loss_min, found.loss_max) == (0.5, 2.0)
    assert (found.predictiveness_min, found.predictiveness_max) == (1.0, 4.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_bad_point_is_kept(bad, place):
    broken = STEPS.clone()
    broken[place] = bad
    found = path_smoothness(STEPS, broken, STEPS)
    assert math.isnan(found.loss_min)
    assert math.isnan(found.loss_max)
    assert math.isnan(found.loss_range)
    assert found.beta == 1
    found = path_smoothness(STEPS, STEPS, broken)
    assert math.isnan(found.beta)
    assert math.isnan(found.predictiveness_min)
    assert math.isnan(found.predictiveness_max)
    assert found.loss_max == 2


@pytest.mark.parametrize("distances", [[], [-1.0]])
def test_points_must_be_away_from_the_start(distances):
    d = torch.tensor(distances, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs points at some distance from its start"):
        path_smoothness(d, d, d)


def test_a_step_that_rounding_swallowed_has_no_beta():
    d = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = path_smoothness(d, d, d)
    assert math.isnan(found.beta)
    assert found.loss_range == 1
