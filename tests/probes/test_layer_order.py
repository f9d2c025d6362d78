import torch
from torch import nn

from bn_lightning.probes.layer_order import layers_in_order, noted_calls


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(2, 1), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.first(self.first(x)))


def test_layers_come_in_the_order_of_the_forward_each_once():
    model = Backwards()
    with noted_calls(model) as order:
        model(torch.zeros(1, 2))
    model.unused(torch.zeros(1, 2))
    assert order == ["first", "last"]
    owned = layers_in_order(dict(model.named_parameters()), order)
    # The one that was not called comes behind the one registered before it.
    assert list(owned) == ["first", "last", "unused"]
    assert owned["last"] == ["last.weight", "last.bias"]


def test_hooks_are_gone_after_an_error():
    model = Backwards()
    try:
        with noted_calls(model):
            model(torch.zeros(1, 5))
    except RuntimeError:
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
