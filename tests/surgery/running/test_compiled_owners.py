"""Owners under torch.compile: as many graphs as without norms, and sizes that are symbols."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from bn_lightning.surgery.insert import insert_batch_norm


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + x)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_blocks_that_are_compiled_one_by_one_share_a_graph():
    model, x = nn.Sequential(*(Block() for _ in range(10)), nn.Linear(6, 1)), torch.randn(8, 6)
    insert_batch_norm(model, (x,))
    counter = CompileCounter()
    for block in model[:10]:
        block.compile(backend=counter)
    with torch.no_grad():  # else there are two graphs, with norms and without: the first input needs no gradient
        model(x)
    assert counter.frame_count == 1
    assert [int(block.bn_lightning_norm[0].num_batches_tracked) for block in model[:10]] == [1] * 10


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms"])
def test_sizes_may_be_symbols(norm):
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.a(x) + x)
            x = self.act(self.b(x) + x)
            return self.head(F.gelu(F.gelu(self.a(x) + x) + x))

    model = Several()
    assert len(insert_batch_norm(model, (torch.randn(8, 6),), norm=norm).inserted) > 1
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True)
    for shape in ((8, 6), (5, 6), (4, 3, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), expected(x))
    torch.testing.assert_close(dict(model.named_buffers()), dict(expected.named_buffers()))
