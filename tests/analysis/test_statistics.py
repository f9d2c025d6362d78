import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bn_lightning.analysis.statistics import Interval, holm, mean_interval, sign_flip_test, verdict

REALS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 6))


@settings(max_examples=50, deadline=None)
@given(values=st.lists(REALS, min_size=3, max_size=19).filter(lambda v: np.ptp(v) > 1e-3))
def test_the_interval_is_that_of_the_paired_t_test(values):
    zeros = np.zeros(len(values))
    expected = stats.ttest_rel(values, zeros).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.method == "t"


def test_another_level_gives_its_own_interval():
    values = [1.0, 2.0, 4.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.8)
    assert mean_interval(values, level=0.8).low == pytest.approx(expected.low)


def test_from_20_values_on_the_interval_is_the_bca_bootstrap():
    values = np.random.default_rng(3).exponential(size=25)
    found = mean_interval(values)
    assert found.method == "BCa"
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, rng=np.random.default_rng(7)).confidence_interval
    # Two draws of 9,999 resamples put the ends apart by about a hundredth of the width.
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)
    # The bootstrap follows the skew; t is symmetric.
    assert found.high - found.mean > found.mean - found.low


def test_equal_values_have_an_interval_of_no_width_at_any_number():
    for n in (2, 25):
        assert mean_interval([0.5] * n) == Interval(0.5, 0.5, 0.5, "t", n)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_have_no_interval(values):
    found = mean_interval(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.method == "none"


@pytest.mark.parametrize("function", [mean_interval, sign_flip_test])
def test_values_that_are_not_finite_are_refused(function):
    with pytest.raises(ValueError, match="need finite values, but got nan"):
        function([1.0, math.nan])


def test_t_intervals_cover_what_they_claim():
    draws = np.random.default_rng(0).normal(size=(2000, 6))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    # Binomial standard error 0.005; four of them.
    assert covered == pytest.approx(0.95, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(REALS, min_size=2, max_size=9))
def test_p_is_that_of_scipys_permutation_test(values):
    expected = stats.permutation_test(
        (np.array(values),), np.sum, permutation_type="samples", vectorized=False, n_resamples=np.inf
    ).pvalue
    p, smallest = sign_flip_test(values)
    assert p == pytest.approx(expected)
    assert smallest == 2 / 2 ** len(values)
    assert p >= smallest


def test_five_seeds_cannot_reach_a_twentieth_and_six_can():
    assert sign_flip_test([1.0] * 5) == (0.0625, 0.0625)
    assert sign_flip_test([1.0] * 6) == (0.03125, 0.03125)


def test_no_pairs_no_p():
    assert all(math.isnan(p) for p in sign_flip_test([]))


def test_many_pairs_are_sampled_close_to_the_exact_p():
    values = np.random.default_rng(5).normal(0.35, 1, size=18)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=18)))
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)
    p, smallest = sign_flip_test(values)
    # Standard error of a share p in 99,999 draws; five of them.
    assert p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 99_999))
    assert smallest == 1 / 100_000


def test_a_sampled_p_is_no_smaller_than_the_smallest(monkeypatch):
    class Unlucky:
        """Draws neither the observed signs nor their mirror image."""

        def choice(self, signs, size):
            return np.resize(signs, size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Unlucky())
    assert sign_flip_test([1.0] * 17) == (2.0**-16, 2.0**-16)


@pytest.mark.parametrize(
    ("given_p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, math.nan, 0.02], [0.04, math.nan, 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(given_p, expected):
    np.testing.assert_allclose(holm(given_p), expected)


@pytest.mark.parametrize(
    ("low", "high", "p", "smallest", "n", "words"),
    [
        (0.1, 0.3, 0.01, 0.01, 8, "better"),
        (-0.3, -0.1, 0.01, 0.01, 8, "worse"),
        (-0.1, 0.3, 0.01, 0.01, 8, "undecided"),
        (0.1, 0.3, 0.10, 0.01, 8, "better, but not after Holm"),
        (0.1, 0.3, 0.19, 0.19, 6, "better; 6 seeds are too few for Holm"),
        (0.1, 0.3, 0.01, 0.01, 5, "too few seeds (5)"),
        (math.nan, math.nan, math.nan, math.nan, 6, "undecided"),
    ],
)
def test_words_say_what_the_interval_supports_and_no_more(low, high, p, smallest, n, words):
    interval = Interval(0.2, low, high, "t", n)
    assert verdict(interval, p, smallest, higher="better", lower="worse") == words
