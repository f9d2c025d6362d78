"""Paired differences over seeds: intervals, an exact test, and Holm's correction."""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BOOTSTRAP_FROM = 20  # pairs; below, BCa intervals cover far less than they claim
VERDICT_FROM = 6  # pairs; with 5, a two-sided sign-flip test cannot fall below 0.05
EXACT_UP_TO = 16  # pairs; 2^16 sign patterns are enumerated, beyond that they are drawn


@dataclass(frozen=True)
class Interval:
    """A mean with an interval.

    Args:
        mean: Sample mean.
        low: Lower end; NaN where no interval can be given.
        high: Upper end.
        method: "t", "BCa" or "none".
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    method: str
    n: int


def mean_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Interval:
    r"""Interval of a mean: Student's t, or the BCa bootstrap from 20 values on.

    t: $\bar d \pm t_{(1+level)/2, n-1} s / \sqrt n$ with the unbiased standard deviation $s$; holds for roughly normal
    values. The bootstrap (Efron 1987) needs no such assumption, but with 10 normal values or fewer its 95 % interval
    covers less than 90 %. For paired comparisons pass the differences.

    Args:
        values: One value per seed; all finite.
        level: Share of cases in which the interval is to cover the mean.

    Returns:
        Mean and interval; the ends are NaN for fewer than two values.

    Raises:
        ValueError: If a value is not finite.

    Example:
        >>> interval = mean_interval([1.0, 2.0, 3.0])
        >>> interval.mean, round(interval.low, 3), interval.method
        (2.0, -0.484, 't')
    """
    sample = _finite(values)
    n = len(sample)
    mean = float(sample.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, "none", n)
    if n >= BOOTSTRAP_FROM and np.ptp(sample) > 0:
        with warnings.catch_warnings():
            # A sample of few distinct values makes SciPy warn of its NaN, which is handled below.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (sample,), np.mean, confidence_level=level, method="BCa", n_resamples=9999, rng=np.random.default_rng(0)
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(mean, float(found.low), float(found.high), "BCa", n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, "t", n)


def sign_flip_test(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
    r"""Two-sided sign-flip (permutation) test that paired differences are symmetric around zero.

    $p = \#\{\sigma \in \{-1, 1\}^n : |\sum \sigma_i d_i| \ge |\sum d_i|\} / 2^n$, enumerated up to 16 pairs and beyond
    that estimated from 99,999 drawn patterns, with the observed one counted in.

    Args:
        differences: One difference per seed; all finite.

    Returns:
        p, and the smallest p that so many pairs could give; both NaN without pairs.

    Raises:
        ValueError: If a difference is not finite.

    Example:
        >>> sign_flip_test([0.1, 0.2, 0.3, 0.1, 0.2])
        (0.0625, 0.0625)
    """
    sample = _finite(differences)
    n = len(sample)
    if n == 0:
        return math.nan, math.nan
    # Sums of equal size can differ in the last bit, by the order they are added in.
    bound = abs(sample.sum()) - 1e-12 * np.abs(sample).sum()
    if n <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return float(np.mean(np.abs(signs @ sample) >= bound)), 2.0 ** (1 - n)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(99_999, n))
    as_far = int(np.sum(np.abs(signs @ sample) >= bound))
    smallest = max(1 / 100_000, 2.0 ** (1 - n))
    # By chance the observed pattern and its mirror image can be drawn less often than their share of all.
    return max((as_far + 1) / 100_000, smallest), smallest


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Holm's step-down adjusted p, which holds the chance of any false claim at the level of the test.

    $\tilde p_{(i)} = \min(1, \max_{j \le i} (m - j + 1) p_{(j)})$ over the $m$ p-values that exist (Holm 1979).

    Args:
        p_values: One per comparison; NaN where there was none, which is left out of the count.

    Returns:
        Adjusted values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    present = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(present):
        largest = max(largest, min(1.0, (len(present) - rank) * p))
        adjusted[index] = largest
    return adjusted


def verdict(interval: Interval, adjusted_p: float, smallest_adjusted_p: float, *, higher: str, lower: str) -> str:
    """Say in words what a comparison supports, and no more.

    A word is given from 6 pairs on and where the 95 % interval excludes zero. Where Holm's p over all comparisons of
    the study stays above 0.05 that is said beside it, and so is when so few seeds could not have brought it lower.

    Args:
        interval: Of the paired differences.
        adjusted_p: Holm's p of the sign-flip test.
        smallest_adjusted_p: The smallest that so many pairs and comparisons could give.
        higher: Words for a positive difference.
        lower: Words for a negative difference.

    Returns:
        One of the two, "undecided", or "too few seeds (n)".

    Example:
        >>> verdict(mean_interval([0.1, 0.2, 0.1]), 0.25, 0.25, higher="better", lower="worse")
        'too few seeds (3)'
    """
    if interval.n < VERDICT_FROM:
        return f"too few seeds ({interval.n})"
    if not (interval.low > 0 or interval.high < 0):
        return "undecided"
    word = higher if interval.low > 0 else lower
    if adjusted_p <= 0.05:
        return word
    if smallest_adjusted_p > 0.05:
        return f"{word}; {interval.n} seeds are too few for Holm"
    return f"{word}, but not after Holm"


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError(
            f"Statistics over seeds need finite values, but got {sample[~np.isfinite(sample)][0]}. Leave diverged runs "
            "out of the mean and count them."
        )
    return sample
