import pytest
import torch

from bn_lightning.functional.power_sums import power_sums
from bn_lightning.probes.activation_layout import ActivationLayout
from bn_lightning.probes.recorded_calls import RecordedCall, summarise_calls


def call(x, *, max_elements, number=0, exact=False):
    layout = ActivationLayout(x, 1, channels=x.shape[1], max_elements=max_elements)
    sums = power_sums(x, 1) if exact else None
    return RecordedCall(layout.read(x, number), layout, number, None if exact else layout.nonfinite(x), sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_calls_that_are_alike_make_one_summary(dtype, bad, exact):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(300, 4, generator=generator).add(number).to(dtype) for number in range(3)]
    if bad:
        xs[1][7, 2] = torch.nan
    calls = [call(x, max_elements=200, number=number, exact=exact) for number, x in enumerate(xs)]
    (summary,) = summarise_calls(calls, 4, max_samples=None, keep_channels=True)
    everything = torch.cat(xs).double()
    assert summary.elements == 3600
    assert summary.channel_nonfinite.tolist() == [0, 0, int(bad), 0]
    assert summary.sampled == len(summary.channel) <= 600
    truth = everything.nanmean(0)
    if exact:
        assert summary.moments.mean.tolist() == pytest.approx(truth.tolist(), rel=1e-6)
        assert summary.moments.count.tolist() == [900, 900, 900 - bad, 900]
        assert summary.extremes[1].tolist() == everything.nan_to_num(nan=-9).amax(0).tolist()
    else:
        # A sixth of what it stands for; channels have a variance of 1 within and 2/3 between calls.
        assert (summary.moments.mean - truth).abs().max() < 4 * (1.67 / 150) ** 0.5
    for value, channel in zip(summary.values.tolist(), summary.channel.tolist(), strict=True):
        assert value in everything[:, channel]


def test_calls_of_different_sizes_stay_apart():
    long, short, whole = torch.randn(300, 4), torch.randn(100, 4), torch.randn(50, 4)
    calls = [call(x, max_elements=200) for x in (long, short, whole, long)]
    found = summarise_calls(calls, 4, max_samples=100, keep_channels=False)
    assert [(one.elements, one.sampled, len(one.values)) for one in found] == [
        (2400, 400, 100),
        (400, 200, 100),
        (200, 200, 100),
    ]
