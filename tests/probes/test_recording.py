import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.errors import NoSiteError, UnknownNameError
from bn_lightning.probes.recording import record_activations
from bn_lightning.surgery.planning import plan_insertion


class Mixed(nn.Module):
    """A convolution, a functional activation, a gate and a token layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.gate, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = torch.relu_(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = torch.tanh(self.fc(x)) * torch.sigmoid(self.gate(x))
        return self.head(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixed()


@pytest.fixture
def x():
    return torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()]


def test_rows_are_the_statistics_of_what_the_nonlinearities_received(model, x):
    with record_activations(model, (x,), percentiles=(10, 50)) as record:
        model(x)
    table = record.table().set_index("layer")
    with torch.no_grad():
        conv = nn.functional.batch_norm(model.conv(x), None, None, training=True)
        fc = model.fc(conv.relu().flatten(2).transpose(1, 2))
    assert list(table.index) == ["conv", "fc"]
    for layer, truth in (("conv", conv), ("fc", fc)):
        row, truth = table.loc[layer], truth.double().numpy()
        assert row["count"] == row["sampled"] == truth.size
        assert row["mean"] == pytest.approx(truth.mean(), abs=1e-6)
        assert row["variance"] == pytest.approx(truth.var(), rel=1e-5)
        assert [row["p10"], row["p50"]] == pytest.approx(np.percentile(truth, (10, 50)).tolist(), rel=1e-4)
        assert (row["mean_error"], row["p50_error"], row["nonfinite"]) == (0, 0, 0)


def test_a_row_a_channel(model, x):
    with record_activations(model, (x,)) as record:
        model(x)
        model(x[:3])
    table = record.table(by="channel")
    with torch.no_grad():
        outputs = [nn.functional.batch_norm(model.conv(part), None, None, training=True) for part in (x, x[:3])]
    truth = torch.cat([output.movedim(1, -1).flatten(0, -2) for output in outputs]).double()
    rows = table[table["layer"] == "conv"]
    assert rows["channel"].tolist() == [0, 1, 2, 3]
    assert rows["count"].tolist() == [9 * 9] * 4
    assert rows["variance"].tolist() == pytest.approx(truth.var(0, unbiased=False).tolist(), rel=1e-5)


def test_the_model_is_left_as_it_was(model, x):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, counts = torch.get_rng_state(), hooks(model)
    with pytest.raises(RuntimeError, match="stop"), record_activations(model, (x,)):
        raise RuntimeError("stop")
    assert hooks(model) == counts
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_recording_changes_no_output(model, x):
    model.eval()
    plain = model(x)
    with record_activations(model, (x,), max_elements=10):
        assert torch.equal(model(x), plain)


def test_layers_can_be_chosen_by_pattern_or_by_sites(model, x):
    with record_activations(model, (x,), include="f*") as record:
        model(x)
    assert record.table()["layer"].tolist() == ["fc"]
    sites = plan_insertion(model, (x,)).sites
    with record_activations(model, sites=sites, exclude=("fc",)) as record:
        model(x)
        assert record.table()["layer"].tolist() == ["conv"]
        record.reset()
        model(x * 2)
    assert record.summaries()["conv"].count == 6 * 4 * 9


def test_keyword_examples_work(model, x):
    with record_activations(model, kwargs={"x": x}) as record:
        model(x)
    assert len(record.table()) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "Give an example call"),
        ({"args": True, "percentiles": ()}, ValueError, "between 0 and 100"),
        ({"args": True, "include": "fcc"}, UnknownNameError, "'fcc'.*fc"),
        ({"args": True, "exclude": "*"}, NoSiteError, "leave none"),
        ({"args": True, "max_elements": 0}, ValueError, "max_elements"),
    ],
)
def test_what_cannot_be_recorded_is_refused(model, x, options, error, message):
    if "args" in options:
        options = {**options, "args": (x,)}
    with pytest.raises(error, match=message), record_activations(model, **options):
        pass


def test_a_table_by_anything_else_is_refused(model, x):
    with record_activations(model, (x,)) as record, pytest.raises(UnknownNameError, match="not by 'unit'"):
        record.table(by="unit")


def test_a_tensor_in_place_of_the_arguments_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with (
        pytest.raises(TypeError, match=r"args is the tuple of positional arguments, such as \(x,\); got Tensor"),
        record_activations(model, torch.ones(3, 2)),
    ):
        pass
