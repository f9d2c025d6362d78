import warnings

import pytest
import torch
from torch import nn

from bn_lightning.errors import NoEffectWarning, NoSiteError
from bn_lightning.probes.recording import record_activations
from bn_lightning.surgery.planning import plan_insertion


@pytest.fixture
def x():
    return torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()]


class Bent(nn.Module):
    """A module, a function, a method, a ReLU spelled out, and a module that is shared in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 5)
        self.mid, self.last, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.act(self.conv(x)).mean((2, 3))
        x = torch.tanh(self.fc(x))
        x = self.act(self.mid(x))
        x = self.last(x)
        return self.head(torch.where(x > 0, x, 0.0)).sigmoid_()


@pytest.mark.parametrize("mode", ["sampled", "exact"])
def test_activations_are_rows_of_their_own_and_what_cannot_be_seen_is_named(x, mode):
    torch.manual_seed(0)
    model = Bent()
    options = {"record": ("activations", "preactivations"), "mode": mode}
    with (
        pytest.warns(NoEffectWarning, match=r"cannot be seen: last \(relu\)\. They are spelled"),
        record_activations(model, (x,), **options) as record,
    ):
        y = model(x)
    before, after = ["conv", "fc", "mid", "last", "head"], ["conv", "fc", "mid", "head"]
    table = record.table().set_index("layer")
    assert list(table.index) == before + [f"{name} activation" for name in after]
    with torch.no_grad():
        conv = model.conv(x).relu()
        fc = model.fc(conv.mean((2, 3))).tanh()
        truths = {"conv": conv, "fc": fc, "mid": model.mid(fc).relu(), "head": y}
    for layer, truth in truths.items():
        row = table.loc[f"{layer} activation"]
        assert row["op"] == table.loc[layer, "op"]
        assert row["mean"] == pytest.approx(truth.mean().item(), abs=1e-6)
        assert (row["min"], row["max"]) == (truth.min().item(), truth.max().item())
        # A channel that is never active before its nonlinearity is not so behind it either.
        assert row["dead"] == table.loc[layer, "dead"]
    assert hooks(model) == [0] * len(list(model.modules()))


def test_activations_alone_and_from_sites_without_an_example(x):
    torch.manual_seed(0)
    model = Bent()
    sites = plan_insertion(model, (x,)).sites
    with record_activations(model, sites=sites, record="activations", include="fc") as record:
        model(x)
    assert record.table()["layer"].tolist() == ["fc activation"]
    assert record.sites == ()
    assert [site.layer for site in record.activations] == ["fc"]


def test_a_layer_visited_twice_has_a_row_for_each_activation():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(8, 4)
    act = nn.ReLU()
    model = nn.Sequential(layer, act, layer, act, nn.Linear(4, 1))
    with record_activations(model, (x,), record=["preactivations", "activations"]) as record:
        for _ in range(2):
            model(x)
    table = record.table().set_index("layer")
    assert list(table.index) == ["0", "0-2", "0 activation", "0-2 activation"]
    with torch.no_grad():
        first = layer(x).relu()
    assert table.loc["0 activation", "mean"] == pytest.approx(first.mean().item())
    assert table.loc["0-2 activation", "mean"] == pytest.approx(layer(first).relu().mean().item())
    assert table["count"].tolist() == [64] * 4


def test_only_unseen_activations_are_refused(x):
    with (
        pytest.raises(NoSiteError, match=r"cannot be seen: last \(relu\).*or record pre-activations"),
        record_activations(Bent(), (x,), record="activations", include="last"),
    ):
        pass


def test_layers_built_in_the_first_forward_are_found():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = None, None

        def forward(self, x):
            if self.first is None:
                self.first, self.second = nn.Linear(x.shape[1], 3), nn.Linear(3, 2)
            return self.second(torch.relu(self.first(x)))

    model, x = Lazy(), torch.randn(5, 4)
    with record_activations(model, (x,), record=("preactivations", "activations"), layers="affine") as record:
        model(x)
    assert record.table()["layer"].tolist() == ["first", "first activation", "first output", "second output"]
    assert record.table()["count"].tolist() == [15, 15, 15, 10]


def test_torchs_lazy_layers_are_refused_until_they_have_run():
    model, x = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2)), torch.randn(5, 4)
    with pytest.raises(ValueError, match="lazy"), record_activations(model, (x,)):
        pass
    model(x)
    with record_activations(model, (x,), layers="activation") as record:
        model(x)
    assert record.table()["layer"].tolist() == ["0", "1 output"]


def test_outputs_of_modules_called_twice_are_recorded_in_every_forward():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(8, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with record_activations(model, (x,), layers="0") as record:
        for _ in range(3):
            model(x)
    assert record.table()["count"].tolist() == [96] * 3


def test_0_graph_breaks_with_everything_recorded(x):
    torch.manual_seed(0)
    model = Bent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        with record_activations(model, (x,), record=("preactivations", "activations"), layers="affine") as record:
            torch._dynamo.reset()
            torch.compile(model, backend="eager", fullgraph=True)(x)
            compiled = record.table()
            record.reset()
            model(x)
            eager = record.table()
    assert compiled["count"].tolist() == eager["count"].tolist()
    assert compiled["mean"].tolist() == pytest.approx(eager["mean"].tolist(), rel=1e-6)
