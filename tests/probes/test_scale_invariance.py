"""Which weights are scale-invariant, for norms whose answer is known by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from bn_lightning.probes.scale_invariance import scale_invariant_blocks


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.linear(x))))


def plain(*norms):
    first, second = norms
    return nn.Sequential(nn.Linear(4, 6), first, nn.ReLU(), nn.Linear(6, 6), second, nn.ReLU(), nn.Linear(6, 3))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch), batch[:, :3].argmax(1))


def blocks_of(model, **options):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).double()
    return scale_invariant_blocks(model.double(), [x], loss_fn=loss_fn, **options)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: plain(nn.BatchNorm1d(6), nn.BatchNorm1d(6)), (("0.weight",), ("3.weight",))),
        # A rectifier hands the scale of weight and bias on to the norm behind the next layer.
        (lambda: plain(nn.Identity(), nn.BatchNorm1d(6)), (("0.weight", "0.bias"), ("3.weight",))),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6)), (("2.weight",),)),
        (lambda: plain(nn.Identity(), nn.Identity()), ()),
        (lambda: plain(nn.BatchNorm1d(6), nn.BatchNorm1d(6)).eval(), ()),
        (Tokens, (("linear.weight", "linear.bias"),)),
        (lambda: nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
         (("0.parametrizations.weight.original1",),)),
    ],
)  # fmt: skip
def test_blocks_are_those_in_front_of_a_norm(make, expected):
    torch.manual_seed(0)
    assert blocks_of(make()) == expected


def test_biases_of_0_at_initialisation_do_not_feign_invariance():
    torch.manual_seed(0)
    model = plain(nn.Identity(), nn.BatchNorm1d(6))
    for part in (model[0], model[3], model[6]):
        nn.init.zeros_(part.bias)
    # As long as its bias is 0 the first weight alone is invariant; with its bias it always is.
    assert blocks_of(model) == (("0.weight", "0.bias"), ("3.weight",))


def test_a_head_of_0_hides_no_block():
    torch.manual_seed(0)
    model = plain(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    nn.init.zeros_(model[6].weight)
    assert blocks_of(model) == (("0.weight",), ("3.weight",))
    assert not model[6].weight.any()


def test_a_dead_layer_is_no_block():
    torch.manual_seed(0)
    model = plain(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    model[1].register_forward_hook(lambda module, args, output: output * 0)
    assert ("0.weight",) not in blocks_of(model)


def test_only_chosen_parameters_and_the_first_batches_are_used():
    torch.manual_seed(0)
    model = plain(nn.LayerNorm(6), nn.LayerNorm(6)).double()
    x = torch.randn(8, 4).double()
    seen = []

    def counted(model, batch):
        seen.append(len(batch))
        return loss_fn(model, batch)

    found = scale_invariant_blocks(model, [x[:1], x[1:4], x[4:]], loss_fn=counted, parameters="3.*")
    assert found == (("3.weight", "3.bias"),)
    assert set(seen) == {1, 3}
