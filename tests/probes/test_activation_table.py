import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.activation_table import Row, channel_table
from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.probes.recording import record_activations


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = torch.relu_(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(self.fc(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixed()


@pytest.fixture
def x():
    return torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def test_percentiles_of_channels_come_with_their_errors():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    model, big = nn.Sequential(layer, nn.ReLU()), torch.randn(16, 3, 20, 20, generator=generator)
    with record_activations(model, (big,), max_elements=1000) as record:
        for _ in range(3):
            model(big)
    table = record.table(by="channel")
    with torch.no_grad():
        truth = np.percentile(layer(big).movedim(1, 0).flatten(1).double().numpy(), (15, 50, 85), axis=1).T
    found = table[["p15", "p50", "p85"]].to_numpy()
    errors = table[["p15_error", "p50_error", "p85_error"]].to_numpy()
    assert table["kept"].tolist() == [750] * 4
    assert table["count"].tolist() == [3 * 16 * 18 * 18] * 4
    assert (np.abs(found - truth) < 3 * errors).all()
    assert (errors > 0).all()
    assert table["dead"].isna().all()
    assert table[["min", "max"]].isna().all(axis=None)
    with record_activations(model, (big,), max_elements=100) as record:
        model(big)
    few = record.table(by="channel")
    assert few["kept"].tolist() == [25] * 4
    assert few[["p15", "p15_error"]].isna().all(axis=None)


@pytest.mark.parametrize("mode", ["sampled", "exact"])
@pytest.mark.parametrize("rows", [20, 5000])
def test_dead_saturated_and_nonfinite_of_each_channel(mode, rows):
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    x[:, 1] = -x[:, 1].abs()
    x[3:9, 2], x[:, 4] = torch.nan, torch.inf
    recorder = ActivationRecorder([5], mode=mode, keep_channels=True)
    recorder.receive("a", 0, x, -1)
    (summary,) = recorder.summaries()
    whole = mode == "exact" or rows == 20
    table = channel_table([Row("a", "preactivation", "relu", summary)], (50,))
    assert table["nonfinite"].tolist() == [0, 0, 6, 0, rows]
    assert table["count"].tolist() == [rows, rows, rows - 6, rows, 0]
    assert table["dead"].tolist()[:4] == ([0, 1, 0, 0] if whole else pytest.approx([np.nan] * 4, nan_ok=True))
    assert np.isnan(table["dead"][4])
    assert table["saturated"][1] == 1
    assert 0.3 < table["saturated"][0] < 0.8
    assert table.loc[4, ["mean", "variance", "min", "p50", "saturated"]].isna().all()
    if whole:
        finite = x[:, 2][x[:, 2].isfinite()]
        assert (table["min"][2], table["max"][2]) == (finite.min().item(), finite.max().item())
        assert table["mean"][2] == pytest.approx(finite.double().mean().item(), rel=1e-6)


def test_histograms_sum_to_the_exact_count(model, x):
    options = {"record": ("preactivations", "activations"), "max_elements": 60}
    with record_activations(model, (x,), **options) as record:
        model(x)
        model(x[:2])
    total = record.table().set_index("layer")["count"]
    found = record.histograms(bins=7)
    assert found.columns.tolist() == ["layer", "low", "high", "count"]
    for layer, part in found.groupby("layer"):
        assert len(part) == 7
        assert part["count"].sum() == pytest.approx(total[layer], rel=1e-12)
        assert (part["low"].to_numpy()[1:] == part["high"].to_numpy()[:-1]).all()
    by_channel = record.histograms("fc*", bins=7, by="channel")
    assert set(by_channel["layer"]) == {"fc", "fc activation"}
    counts = by_channel.groupby(["layer", "channel"])["count"].sum()
    assert counts.to_numpy() == pytest.approx(8 * 9)
    everything = record_whole(model, x)
    with torch.no_grad():
        conv = nn.functional.batch_norm(model.conv(x), None, None, training=True)
    truth, edges = np.histogram(conv.double().numpy(), bins=5)
    row = everything.histograms("conv", bins=5)
    assert row["count"].tolist() == pytest.approx(truth.tolist(), abs=2)  # two sums of the norm differ in rounding
    assert row["low"].tolist() == pytest.approx(edges[:-1].tolist(), rel=1e-5)


def record_whole(model, x):
    with record_activations(model, (x,), max_elements=None) as record:
        model(x)
    return record


def test_histograms_of_nothing_and_of_what_is_not_there(model, x):
    with record_activations(model, (x,)) as record:
        assert record.histograms().empty
        model(x)
        with pytest.raises(UnknownNameError, match="No monitored layer matches 'head'"):
            record.histograms("head")
        with pytest.raises(UnknownNameError, match="not by 'unit'"):
            record.histograms(by="unit")
        with pytest.raises(ValueError, match="one bin or more, got bins=0"):
            record.histograms(bins=0)
