"""Recording under torch.compile: no graph break, every recorded forward counted, none of the others."""

import gc

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from bn_lightning.probes.graph_op import numbered, read_in_graph
from bn_lightning.probes.recorder import ActivationRecorder
from bn_lightning.surgery.planning import plan_insertion
from bn_lightning.surgery.running.taps import tap_preactivations


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.head(self.relu(self.second(torch.sigmoid(self.first(x)))))


# torch.compile hides this warning of its own by a filter that does not stand up to errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("mode", ["sampled", "exact"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_recording_breaks_no_graph_and_a_switched_off_recorder_is_not_in_it(backend, mode):
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model, x = Net(), torch.randn(10, 6)
    sites = plan_insertion(model, (x,)).sites
    recorder = ActivationRecorder([site.channels for site in sites], mode=mode)
    gradients = []
    with torch.no_grad():
        truth = model.first(x).double()
    with tap_preactivations(model, sites, recorder.receive):
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for on in (True, True, False, True, False):
            recorder.recording = on
            model.zero_grad()
            compiled(x).square().sum().backward()
            gradients.append(model.first.weight.grad.clone())
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    first, second = recorder.summaries()
    assert (first.count, second.count) == (3 * 80, 3 * 50)
    assert first.mean == pytest.approx(truth.mean().item(), abs=1e-6)
    for gradient in gradients[1:]:
        assert torch.equal(gradient, gradients[0])
    torch._dynamo.reset()


def test_a_graph_outlives_its_recorder():
    class Seen:
        def read(self, index, activation, channel_dim):
            self.last = (index, tuple(activation.shape), channel_dim)

    seen, ticks = Seen(), torch.zeros(1, dtype=torch.int64)
    number = numbered(seen)
    read_in_graph(ticks, torch.ones(2, 3), number, 4, -1)
    assert seen.last == (4, (2, 3), -1)
    del seen
    gc.collect()
    read_in_graph(ticks, torch.ones(2, 3), number, 4, -1)
    assert ticks.item() == 2
