import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.probes.recorder import ActivationRecorder


def exact(x, channel_dim=1):
    return x.double().movedim(channel_dim, -1).flatten(0, -2).numpy()


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((9, 5), -1), ((4, 5, 6), -2), ((2, 5, 3, 4), -3), ((4, 6, 5), -1), ((2, 5, 2, 3, 2), 1)],
)
@pytest.mark.parametrize("max_elements", [1024, None])
def test_small_tensors_are_taken_whole(shape, channel_dim, max_elements):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    recorder = ActivationRecorder([5], max_elements=max_elements)
    recorder.receive("a", 0, x, channel_dim)
    summary, truth = recorder.summaries()[0], exact(x, channel_dim)
    torch.testing.assert_close(summary.moments.mean, torch.from_numpy(truth.mean(0)))
    torch.testing.assert_close(summary.moments.variance(), torch.from_numpy(truth.var(0)))
    assert summary.percentiles((15, 50, 85)) == pytest.approx(np.percentile(truth, (15, 50, 85)).tolist())
    assert summary.count == summary.sampled == x.numel()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "neither"])
def test_what_is_read_lies_in_its_channel_whatever_the_memory_layout(layout):
    x = torch.arange(16.0).reshape(1, 16, 1, 1).expand(8, 16, 12, 12)
    x = {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "neither": x,
    }[layout]
    recorder = ActivationRecorder([16])
    recorder.receive("a", 0, x, -3)
    summary = recorder.summaries()[0]
    assert summary.sampled == 1024
    assert summary.moments.mean.tolist() == list(range(16))
    assert summary.moments.m2.tolist() == [0] * 16


@pytest.mark.parametrize("shape", [(60, 100), (4, 100, 6, 7)])
def test_successive_calls_read_every_element_before_any_comes_twice(shape):
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    recorder = ActivationRecorder([100], max_samples=None)
    for _ in range(-(-x.numel() // 1000)):
        recorder.receive("a", 0, x, 1 - x.dim())
    values = recorder.summaries()[0].values
    assert set(values.tolist()) == set(range(x.numel()))


def test_a_sample_is_as_close_as_its_error_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 64, 16, 16, generator=generator) * torch.rand(64, 1, 1, generator=generator) * 3 + 2
    recorder = ActivationRecorder([64])
    recorder.receive("a", 0, x, 1)
    summary, truth = recorder.summaries()[0], exact(x)
    assert summary.sampled == 1024
    assert summary.count == x.numel()
    assert abs(summary.mean - truth.mean()) < 3 * summary.mean_error()
    assert abs(summary.variance - truth.var()) < 3 * summary.variance_error()
    found, errors = summary.percentiles((15, 50, 85)), summary.percentile_errors((15, 50, 85))
    for value, error, true in zip(found, errors, np.percentile(truth, (15, 50, 85)), strict=True):
        assert abs(value - true) < 3 * error
    assert 0.5 / 32 < summary.mean_error() / truth.std() < 2 / 32


def test_a_long_window_converges_to_the_truth():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 60, 50, generator=generator).cumsum(0) / 10
    recorder = ActivationRecorder([50])
    for step in x:
        recorder.receive("a", 0, step, -1)
    summary, truth = recorder.summaries()[0], x.double().flatten(0, 1).numpy()
    assert summary.count == x.numel()
    assert len(summary.values) == 4096
    assert abs(summary.mean - truth.mean()) < 4 * summary.mean_error()
    for value, true in zip(summary.percentiles((15, 50, 85)), np.percentile(truth, (15, 50, 85)), strict=True):
        assert abs(value - true) < 0.02 * truth.std()


def test_calls_of_one_step_weigh_by_their_size():
    """Gradient accumulation: a short micro-batch weighs less, though as many elements are read of it."""
    long, short = torch.zeros(300, 10), torch.ones(100, 10) * 4
    recorder = ActivationRecorder([10], max_elements=500)
    recorder.receive("a", 0, long, -1)
    recorder.receive("a", 0, short, -1)
    summary = recorder.summaries()[0]
    assert summary.sampled == 1000
    assert summary.mean == pytest.approx(1.0)
    assert summary.percentiles((70, 80)) == [0, 4]


def test_an_in_place_activation_afterwards_changes_nothing():
    for shape in ((9, 5), (900, 5)):
        x = torch.randn(shape)
        before = x.clone()
        recorder = ActivationRecorder([5], max_elements=None if shape[0] == 9 else 1024)
        recorder.receive("a", 0, x, -1)
        nn.functional.relu_(x)
        assert min(recorder.summaries()[0].values) < 0
        assert before.min() < 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_is_summed(dtype):
    x = (torch.randn(40, 8) * 0.5 + 100).to(dtype)
    recorder = ActivationRecorder([8])
    recorder.receive("a", 0, x, -1)
    summary, truth = recorder.summaries()[0], exact(x)
    torch.testing.assert_close(summary.moments.variance(), torch.from_numpy(truth.var(0)))
    assert summary.nonfinite == 0


def test_nonfinite_values_are_counted_in_all_elements_not_in_the_sample():
    x = torch.randn(2000, 10)
    x[::100, 3] = torch.nan
    recorder = ActivationRecorder([10], max_elements=100)
    recorder.receive("a", 0, x, -1)
    recorder.receive("a", 0, x, -1)
    summary = recorder.summaries()[0]
    assert summary.nonfinite == 40
    assert np.isfinite(summary.mean)


def test_more_channels_than_elements_read_are_met_in_turn():
    x = torch.arange(3000.0).expand(20, 3000)
    recorder = ActivationRecorder([3000], max_elements=1000)
    for _ in range(3):
        recorder.receive("a", 0, x, -1)
    summary = recorder.summaries()[0]
    assert summary.moments.mean.tolist() == list(range(3000))
    assert summary.sampled == 3000


def test_it_draws_no_random_number_and_keeps_no_graph():
    state = torch.get_rng_state()
    x = torch.randn(2000, 4, requires_grad=True)
    after = torch.get_rng_state()
    recorder = ActivationRecorder([4])
    recorder.receive("a", 0, x * 2, -1)
    assert not recorder.summaries()[0].values.requires_grad
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(state, after)


def test_reset_and_recording_bound_a_window():
    recorder = ActivationRecorder([2])
    recorder.receive("a", 0, torch.ones(3, 2), -1)
    recorder.reset()
    assert recorder.summaries()[0].count == 0
    recorder.receive("a", 0, torch.full((3, 2), 5.0), -1)
    recorder.recording = False
    recorder.receive("a", 0, torch.ones(3, 2), -1)
    assert recorder.summaries()[0].mean == 5
    recorder.recording = True
    recorder.receive("a", 0, torch.empty(0, 2), -1)
    assert recorder.summaries()[0].count == 6


def test_the_same_calls_give_the_same_numbers():
    x = torch.randn(500, 30)
    found = []
    for _ in range(2):
        recorder = ActivationRecorder([30])
        for _ in range(3):
            recorder.receive("a", 0, x, -1)
        found.append(recorder.summaries()[0])
    assert torch.equal(found[0].values, found[1].values)
    assert found[0].mean == found[1].mean


@pytest.mark.parametrize("limit", ["max_elements", "max_samples"])
def test_limits_below_one_are_refused(limit):
    with pytest.raises(ValueError, match=f"{limit} must be at least 1"):
        ActivationRecorder([1], **{limit: 0})
