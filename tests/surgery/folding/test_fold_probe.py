import pytest
import torch
from torch import Tensor, nn

from bn_lightning.surgery.folding.fold_probe import follow_channels


def follow(model: nn.Module, x: Tensor, source: tuple[str, int], target: tuple[str, int], channels: int):
    return follow_channels(model, lambda: model(x), dict([source]), dict([target]), channels=channels, arrivals=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 63, 64, 65, 300, 5000])
def test_any_number_of_channels_is_told_apart_in_any_type(channels, dtype):
    model = nn.Sequential(nn.Linear(2, channels), nn.Identity(), nn.Linear(channels, 1)).to(dtype)
    found = follow(model, torch.ones(3, 2, dtype=dtype), ("0", -1), ("2", -1), channels)
    assert found == {"2": tuple(range(channels))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_averages_within_a_channel_keep_it(dtype):
    model = nn.Sequential(nn.Conv2d(1, 70, 1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(280, 1)).to(dtype)
    found = follow(model, torch.ones(2, 1, 6, 6, dtype=dtype), ("0", -3), ("3", -1), 70)
    assert found == {"3": tuple(torch.arange(70).repeat_interleave(4).tolist())}


class Mixing(nn.Module):
    def __init__(self, mix) -> None:
        super().__init__()
        self.first, self.second, self.mix = nn.Linear(2, 6), nn.Identity(), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mix(self.first(x)))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x.mean(-1, keepdim=True).expand(x.shape),
        lambda x: nn.functional.avg_pool1d(x, 3, 1, 1),
        lambda x: nn.functional.pad(x[:, :4], (1, 1)),
        lambda x: x + x,
        lambda x: x[:0],
        lambda x: x.unflatten(1, (3, 2)).amax(2).repeat(1, 2),
        lambda x: x.unflatten(1, (3, 2)).amin(2).repeat(1, 2),
        lambda x: x.view(-1)[torch.arange(x.numel()) % 5].view(x.shape),
    ],
    ids=["mean", "neighbours", "padding", "sum", "empty", "maxout", "minout", "scrambled"],
)
def test_what_mixes_channels_or_brings_other_values_is_not_followed(mix):
    assert follow(Mixing(mix), torch.ones(3, 2), ("first", -1), ("second", -1), 6) == {}


@pytest.mark.parametrize("ends", [(1, 0), (0, 1)])
def test_a_border_that_extremes_hide_is_met(ends):
    def mix(x: Tensor) -> Tensor:
        padded = nn.functional.pad(x[:, :, None], ends)
        return padded.amax(2) if ends[0] else padded.amin(2)

    assert follow(Mixing(mix), torch.ones(3, 2), ("first", -1), ("second", -1), 6) == {}


def test_what_picks_and_repeats_channels_is_followed():
    mix = Mixing(lambda x: x[:, [5, 0, 0, 2]])
    assert follow(mix, torch.ones(3, 2), ("first", -1), ("second", -1), 6) == {"second": (5, 0, 0, 2)}


def test_a_model_that_fails_on_the_numbers_before_they_arrive_claims_nothing():
    def fail(x: Tensor) -> Tensor:
        raise ArithmeticError("unusual values")

    assert follow(Mixing(fail), torch.ones(3, 2), ("first", -1), ("second", -1), 6) == {}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    follow(model, torch.randn(4, 2), ("0", -1), ("2", -1), 3)
    assert int(model[1].num_batches_tracked) == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
