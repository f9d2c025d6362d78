import pytest
import torch
from torch import nn

from bn_lightning.probes.recording import record_activations


class Loop(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.fc, self.out, self.times = nn.Linear(6, 6), nn.Linear(6, 3), times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.relu(self.fc(x))
        return self.out(x)


def test_each_visit_of_a_shared_layer_has_a_row():
    torch.manual_seed(0)
    model, x = Loop(3), torch.randn(7, 6)
    with record_activations(model, (x,)) as record:
        model(x)
        model(x)
    table = record.table().set_index("layer")
    assert list(table.index) == ["fc", "fc-2", "fc-3"]
    for name in table.index:
        with torch.no_grad():
            before = model.fc(x)
        assert table.loc[name, "mean"] == pytest.approx(before.double().mean().item(), abs=1e-6)
        assert table.loc[name, "count"] == 2 * 42
        x = before.relu()


def test_a_recurrent_layer_stays_one_row():
    model, x = Loop(20), torch.randn(7, 6)
    with record_activations(model, (x,)) as record:
        model(x)
    assert record.table()["count"].tolist() == [20 * 42]
