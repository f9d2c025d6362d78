import pytest
import torch
from torch import nn

from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.outputs import OutputTaps, find_outputs
from bn_lightning.probes.recording import record_activations


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()
        self.rnn, self.fc, self.again = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 6), nn.Linear(6, 6)
        self.pick = nn.Identity()

    def forward(self, x):
        x = self.act(self.norm(self.conv(x))).transpose(1, 2)
        x, _ = self.rnn(x)
        x = self.again(self.again(self.act(self.fc(x))))
        return self.pick({"head": x, "mask": x > 0})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixed()


@pytest.fixture
def x():
    return torch.randn(6, 3, 9)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_outputs_of_every_kind_are_found_in_the_order_of_the_forward(model, x):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_outputs(model, "*", lambda: model(x))
    assert [(one.label, one.channels, one.channel_dim) for one in found] == [
        ("conv", 4, -2),
        ("norm", 4, -2),
        ("act", 4, -2),
        ("rnn", 5, -1),
        ("fc", 6, -1),
        ("act-2", 6, -1),
        ("again", 6, -1),
        ("again-2", 6, -1),
        ("pick", 6, -1),
    ]
    assert hooks(model) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_calls_are_told_apart_and_counted_anew_in_each_forward(model, x):
    outputs = find_outputs(model, ["again", nn.LSTM], lambda: model(x))
    got = []
    taps = OutputTaps(model, outputs, lambda path, index, value, axis: got.append((index, value)))
    model(x)
    taps.begin_forward()
    model(x)
    assert [index for index, _ in got] == [0, 1, 2] * 2
    with torch.no_grad():
        assert torch.equal(model.again(got[1][1]), got[2][1])
    taps.remove()
    model(x)
    assert hooks(model) == 0
    assert len(got) == 6  # the call of `again` above is beyond those of a forward


def test_a_module_that_returns_another_size_later_is_left_out(model, x):
    outputs = find_outputs(model, "act", lambda: model(x))
    got = []
    taps = OutputTaps(model, outputs, lambda path, index, value, axis: got.append(index))
    model(x[..., :7])
    taps.remove()
    model.fc, model.again = nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    taps = OutputTaps(model, outputs, lambda path, index, value, axis: got.append(index))
    model(x)
    taps.remove()
    assert got == [0, 1, 0]


@pytest.mark.parametrize("layers", [["rnn"], nn.LSTM, "r?n"])
def test_a_record_holds_outputs_beside_pre_activations(model, x, layers):
    with record_activations(model, (x,), layers=layers, mode="exact") as record:
        y = model(x)
    table = record.table().set_index("layer")
    assert "conv" in table.index
    with torch.no_grad():
        truth = model.rnn(model.act(model.norm(model.conv(x))).transpose(1, 2))[0]
    row = table.loc["rnn output"]
    assert row["mean"] == pytest.approx(truth.mean().item(), abs=1e-6)
    assert (row["min"], row["max"]) == (truth.min().item(), truth.max().item())
    assert row["op"] == ""
    assert y["head"].shape == (6, 7, 6)


def test_a_model_without_nonlinearities_has_outputs(x):
    model = nn.Sequential(nn.Conv1d(3, 4, 3))
    with record_activations(model, (x,), layers="0") as record:
        model(x)
    assert record.table()["layer"].tolist() == ["0 output"]


def test_words_stand_for_all_modules_that_are_affine_or_a_nonlinearity():
    class OwnWeight(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(6, 6))

        def forward(self, x):
            return x @ self.kernel

    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.own, self.act, self.swish = nn.Linear(4, 6), OwnWeight(), nn.PReLU(), Swish()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.norm, self.drop, self.activation = nn.LayerNorm(6), nn.Dropout(), nn.Identity()

        def forward(self, x):
            x = self.act(self.norm(self.own(self.fc(x))))
            x, _ = self.attention(x, x, x)
            return self.activation(self.drop(self.swish(x))), torch.relu(x)

    model, x = Words(), torch.randn(3, 5, 4)
    assert [one.label for one in find_outputs(model, "affine", lambda: model(x))] == ["fc", "own", "attention"]
    assert [one.label for one in find_outputs(model, "activation", lambda: model(x))] == ["act", "swish"]
    chosen = ["activation", nn.LayerNorm, "f*", "[a]ctivation"]
    found = [one.label for one in find_outputs(model, chosen, lambda: model(x))]
    assert found == ["fc", "norm", "act", "swish", "activation"]
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [("affine", "'affine' stands for no module here: none that ran multiplies"), ("activation", "functions have no")],
)
def test_words_that_stand_for_nothing_are_refused(layers, message):
    model, x = nn.Sequential(nn.Flatten(), nn.LayerNorm(4)), torch.randn(3, 4)
    with pytest.raises(UnknownNameError, match=message):
        find_outputs(model, layers, lambda: torch.relu(model(x)))
    assert find_outputs(model, [layers, "x*", nn.Conv1d, "1"], lambda: model(x), missing_ok=True)[0].label == "1"


@pytest.mark.parametrize(
    ("layers", "message"),
    [("head*", "No monitored layer matches 'head"), (nn.Conv3d, "is a Conv3d; there are BatchNorm1d, Conv1d, ")],
)
def test_what_matches_nothing_is_refused(model, x, layers, message):
    with pytest.raises(UnknownNameError, match=message):
        find_outputs(model, layers, lambda: model(x))
    assert hooks(model) == 0


def test_outputs_need_an_example(model):
    with pytest.raises(ValueError, match="Give an example call"), record_activations(model, sites=(), layers="*"):
        pass
