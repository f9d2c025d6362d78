import math

import pytest
import torch
from torch import nn

from bn_lightning.probes.recording import record_activations

EVERYTHING = ("preactivations", "activations", "gradients")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def expected(model, x):
    """Gradients from autograd itself, in float64, by name in the table."""
    first = model[0].double()(x.double())
    hidden = first.relu()
    second = model[2].double()(hidden)
    returned = second.tanh()
    y = model[4].double()(returned)
    found = torch.autograd.grad(y.square().mean(), (first, second, hidden, returned, y))
    return dict(zip(("0", "2", "0 activation", "2 activation", "4 output"), found, strict=True))


@pytest.mark.parametrize("mode", ["sampled", "exact"])
def test_gradients_of_all_that_is_recorded_are_those_of_autograd(mode):
    model, x = network(), torch.randn(30, 6)
    with record_activations(model, (x,), record=EVERYTHING, layers="4", mode=mode) as record:
        model(x).square().mean().backward()
    table = record.gradients().set_index("layer")
    truth = expected(model, x)
    assert list(table.index) == list(record.table()["layer"]) == list(truth)
    assert list(table["kind"]) == [
        f"{kind}_gradient" for kind in ("preactivation", "preactivation", "activation", "activation", "output")
    ]
    for name, gradient in truth.items():
        row = table.loc[name]
        assert row["count"] == gradient.numel()
        for column, value in (("norm", gradient.norm()), ("mean", gradient.mean())):
            assert row[column] == pytest.approx(value.item(), rel=1e-5, abs=1e-9)
        assert row["variance"] == pytest.approx(gradient.var(correction=0).item(), rel=1e-5)


def test_only_backward_passes_since_the_reset_and_within_the_block_count():
    model, x = network(), torch.randn(30, 6)
    with record_activations(model, (x,), record=("preactivations", "gradients")) as record:
        model(x).sum().backward()
        record.reset()
        assert math.isnan(record.gradients()["norm"][0])
        model(x).sum().backward()
        late = model(x).sum()
    late.backward()
    model(x).sum().backward()
    assert list(record.gradients()["count"]) == [240, 150]


def test_gradients_of_outputs_alone():
    model, x = network(), torch.randn(30, 6)
    with record_activations(model, (x,), record="gradients", layers=nn.Linear) as record:
        model(x).square().mean().backward()
    truth = expected(model, x)
    found = record.gradients()
    assert list(found["layer"]) == ["0 output", "2 output", "4 output"]
    assert found["norm"][2] == pytest.approx(truth["4 output"].norm().item(), rel=1e-5)
    assert found["norm"][0] == pytest.approx(truth["0"].norm().item(), rel=1e-5)


def test_gradients_that_were_not_asked_for_are_refused_with_the_way_to_have_them():
    model, x = network(), torch.randn(4, 6)
    with record_activations(model, (x,)) as record:
        pass
    with pytest.raises(ValueError, match=r"No gradients were recorded.*record=\('preactivations', 'gradients'\)"):
        record.gradients()
