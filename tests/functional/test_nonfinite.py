import numpy as np
import pytest
import torch

from bn_lightning.functional.nonfinite import count_channel_nonfinite


@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 4), -1), ((3, 4, 5), 1), ((3, 5, 4), -1), ((2, 4, 3, 3), -3), ((4,), 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_kind_is_counted_in_its_channel(shape, axis, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    drawn = torch.rand(shape, generator=generator)
    for share, bad in ((0.6, torch.nan), (0.4, torch.inf), (0.2, -torch.inf)):
        x[drawn < share] = bad
    x.view(-1)[0] = torch.finfo(dtype).max
    counted = count_channel_nonfinite(x, axis)
    rows = np.moveaxis(x.double().numpy(), axis, 0).reshape(4, -1)
    assert counted.tolist() == (~np.isfinite(rows)).sum(1).tolist()
    assert counted.sum() > 0
    assert counted.dtype == torch.int64


def test_nothing_counts_nothing():
    assert count_channel_nonfinite(torch.zeros(0, 3), 1).tolist() == [0, 0, 0]
