"""What must not matter to what is recorded: how data come in batches, in which order, of which channel or unit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.functional.activations import empty_summary, merge_summaries
from bn_lightning.probes.activation_table import Row, channel_table
from bn_lightning.probes.recorder import ActivationRecorder

LAWS = settings(max_examples=30, deadline=None)
CHANNELS = 4
SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum)
SEEDS = st.integers(0, 10**6)
MODES = st.sampled_from(["sampled", "exact"])


def drawn(seed, rows, *, spoil=True):
    """Rows of four channels of their own scale, of which one may hold what is not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, CHANNELS, 2, generator=generator) * torch.tensor([1.0, 3.0, 0.01, 10.0])[:, None] + 5
    if spoil:
        bad = torch.rand(rows, 2, generator=generator) < 0.1
        x[:, 1][bad] = math.nan
        x[:1, 2] = math.inf
    return x


def recorded(batches, mode):
    recorder = ActivationRecorder([CHANNELS], max_elements=None, mode=mode, keep_channels=True)
    if mode == "exact":
        # So small a sample, of so small a tensor, that moments come from the power sums.
        recorder.max_elements = 8
    for batch in batches:
        recorder.receive("", 0, batch, 1)
    return recorder.summaries()[0]


def assert_same(first, second, mode="sampled"):
    assert (first.elements, first.nonfinite) == (second.elements, second.nonfinite)
    assert torch.equal(first.channel_nonfinite, second.channel_nonfinite)
    assert torch.equal(first.moments.count, second.moments.count)
    assert torch.equal(first.extremes, second.extremes)
    # Sums in float32 by chunks round otherwise where chunks begin elsewhere.
    limits = {"rtol": 1e-5, "atol": 1e-5} if mode == "exact" else {}
    torch.testing.assert_close(first.moments.mean, second.moments.mean, **limits)
    for name in ("variance", "skewness", "kurtosis"):
        found, expected = (getattr(one.moments, name)() for one in (first, second))
        # A single element has no spread but what rounding leaves, of which no shape can be told.
        some = first.moments.count > 2
        torch.testing.assert_close(found[some], expected[some], **limits)
    if mode == "exact":
        return  # what is sampled for percentiles is another sample
    assert first.sampled == second.sampled
    for one, other in zip(by_channel(first), by_channel(second), strict=True):
        assert torch.equal(one, other)


def by_channel(summary):
    return [summary.values[summary.channel == channel].sort().values for channel in range(CHANNELS)]


@LAWS
@given(SIZES, SEEDS, MODES)
def test_any_split_into_batches_gives_the_same(sizes, seed, mode):
    x = drawn(seed, sum(sizes))
    assert_same(recorded(x.split(sizes), mode), recorded([x], mode), mode)


@LAWS
@given(SIZES, SEEDS, st.randoms(use_true_random=False))
def test_any_split_into_steps_or_ranks_merges_to_the_same_in_any_order(sizes, seed, chance):
    x = drawn(seed, sum(sizes))
    parts = [recorded([part], "sampled") for part in x.split(sizes)]
    chance.shuffle(parts)
    while len(parts) > 1:
        merged = merge_summaries(parts.pop(chance.randrange(len(parts))), parts.pop())
        parts.insert(chance.randrange(len(parts) + 1), merged)
    assert_same(merge_summaries(empty_summary(CHANNELS), parts[0]), recorded([x], "sampled"))


@LAWS
@given(st.integers(3, 40), SEEDS, st.permutations(range(CHANNELS)), MODES)
def test_permuting_channels_permutes_the_rows(rows, seed, order, mode):
    x = drawn(seed, rows)
    before, after = (
        channel_table([Row("a", "preactivation", "relu", recorded([part], mode))], (15, 50))
        for part in (x, x[:, order])
    )
    expected = before.loc[list(order)].reset_index(drop=True)
    sampled = ["kept", "saturated", "p15", "p50", "p15_error", "p50_error"] if mode == "exact" else []
    for column in before.columns.drop(["layer", "op", "channel", *sampled]):
        found, wanted = after[column].tolist(), expected[column].tolist()
        # Which elements lie beside each other decides how sums round.
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5, nan_ok=True), column


@LAWS
@given(st.integers(3, 40), SEEDS, st.sampled_from([0.25, 2.0, 1024.0]), st.integers(-64, 64), MODES)
def test_scaling_and_shifting_move_location_and_scale_alone(rows, seed, scale, shift, mode):
    # Quarters, so that scaling and shifting round nothing away.
    x = (drawn(seed, rows, spoil=False) * 4).round() / 4
    before, after = (recorded([part], mode) for part in (x, x * scale + shift))
    # Float32 sums around another pivot in the exact mode.
    limits = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(after.moments.mean, before.moments.mean * scale + shift, **limits)
    torch.testing.assert_close(after.moments.variance(), before.moments.variance() * scale**2, **limits)
    varied = before.moments.m2 > 0
    for name in ("skewness", "kurtosis"):
        found, expected = (getattr(one.moments, name)()[varied] for one in (after, before))
        torch.testing.assert_close(found, expected, **limits)
    assert torch.equal(after.extremes, before.extremes * scale + shift)
    expected = [value * scale + shift for value in before.percentiles((0, 15, 50, 100))]
    assert after.percentiles((0, 15, 50, 100)) == pytest.approx(expected)


@LAWS
@given(st.integers(0, 3), SEEDS)
def test_negation_mirrors(channel, seed):
    x = drawn(seed, 20, spoil=False)
    before, after = recorded([x], "exact"), recorded([-x], "exact")
    torch.testing.assert_close(after.moments.mean[channel], -before.moments.mean[channel])
    torch.testing.assert_close(after.moments.skewness(), -before.moments.skewness())
    assert torch.equal(after.extremes, -before.extremes.flip(0))
