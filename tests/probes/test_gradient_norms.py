"""Gradient norms against autograd on a copy, and against closed forms."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bn_lightning as bnl
from bn_lightning.errors import UnknownNameError
from bn_lightning.probes.gradient_norms import gradient_norms


def network(norm=True):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), middle, nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(6, 3)).double()


def batch(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_every_number_is_autograds_on_a_copy():
    model, state = network(), torch.get_rng_state()
    found = gradient_norms(model, [batch()], loss_fn=loss_fn)
    assert torch.equal(torch.get_rng_state(), state)
    twin, (x, y) = copy.deepcopy(model), batch()
    first = twin[0](x)
    last = twin[4](twin[3](F.relu(twin[1](first))))
    loss = F.cross_entropy(last, y)
    wrt = [*twin[0].parameters(), *twin[4].parameters(), first, last]
    a, b, c, d, by_first, by_last = torch.autograd.grad(loss, wrt)
    assert found.loss == pytest.approx(loss.item())
    assert [layer.layer for layer in found.layers] == ["0", "4"]
    for layer, parts, output, module in ((0, (a, b), by_first, twin[0]), (1, (c, d), by_last, twin[4])):
        norm = math.hypot(*(part.norm().item() for part in parts))
        size = math.hypot(*(part.norm().item() for part in module.parameters()))
        # The mean square, over samples, of the gradient of each sample's own loss, which is 40 times the mean's.
        per_sample = (40 * output).square().sum(1).mean().sqrt().item()
        assert found.layers[layer].numbers() == pytest.approx(
            {"gradient_norm": norm, "gradient_norm_relative": norm / size, "gradient_norm_output": per_sample}
        )


def test_batches_of_unequal_size_count_by_their_samples():
    model, (x, y) = network(norm=False).eval(), batch()
    whole = gradient_norms(model, [(x, y)], loss_fn=loss_fn)
    parts = gradient_norms(model, [(x[:7], y[:7]), (x[7:], y[7:])], loss_fn=loss_fn)
    assert parts.samples == whole.samples == 40
    assert parts.loss == pytest.approx(whole.loss)
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert one.numbers() == pytest.approx(other.numbers())


def test_the_slope_is_that_of_a_chain_of_equal_gains():
    chain = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(6))).double()
    for layer in chain:
        nn.init.orthogonal_(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(0.5)
    found = gradient_norms(
        chain, [torch.randn(9, 3, dtype=torch.float64)], loss_fn=lambda model, x: model(x).sum(1).mean()
    )
    assert found.decades_per_layer() == pytest.approx(math.log10(2))
    assert found.numbers()[""] == pytest.approx({"gradient_norm_decades_per_layer": math.log10(2)})
    assert found.layers[0].output == pytest.approx(math.sqrt(3) * 0.5**5)


def test_an_inserted_norm_belongs_to_the_output_of_its_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    by_hand = nn.Sequential(model[0], nn.BatchNorm1d(6).double(), nn.Tanh(), model[2])
    x, y = batch()
    normed = by_hand[1](by_hand[0](x))
    (expected,) = torch.autograd.grad(F.cross_entropy(by_hand[3](by_hand[2](normed)), y), normed)
    bnl.insert_batch_norm(model, (x,))
    found = gradient_norms(model, [(x, y)], loss_fn=loss_fn)
    assert [layer.layer for layer in found.layers] == ["0", "2"]
    assert found.layers[0].output == pytest.approx(expected.norm().item() * math.sqrt(40))


def test_a_layer_called_twice_counts_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice().double()
    nn.init.constant_(model.layer.weight, 2.0)
    x = torch.ones(4, 1, dtype=torch.float64)
    (layer,) = gradient_norms(model, [x], loss_fn=lambda model, x: model(x).mean()).layers
    assert layer.output == pytest.approx(math.hypot(1.0, 2.0))
    assert layer.parameters == pytest.approx(4.0)  # of w²
    assert layer.relative == pytest.approx(2.0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("last_state", [False, True])
def test_a_recurrent_layer_has_the_gradient_of_what_the_loss_reads_of_it(kind, last_state):
    torch.manual_seed(0)
    model = nn.ModuleDict({"recurrent": kind(4, 5), "head": nn.Linear(5, 3)}).double()
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    read = []

    def loss_fn(model, x):
        output, state = model["recurrent"](x)
        read.append((state[0] if kind is nn.LSTM else state) if last_state else output)
        return model["head"](read[-1]).square().sum()

    found = gradient_norms(model, [x], loss_fn=loss_fn)
    (expected,) = torch.autograd.grad(loss_fn(model, x), read[-1])
    assert [layer.layer for layer in found.layers] == ["recurrent", "head"]
    assert found.layers[0].output == pytest.approx(math.sqrt(7) * expected.norm().item())
    assert math.isfinite(found.decades_per_layer())


def test_outputs_of_one_operation_that_the_loss_leaves_out_do_not_count():
    class Halves(nn.Linear):
        def forward(self, x):
            return super().forward(x).split(1, 1)

    model = Halves(4, 2).double()
    (layer,) = gradient_norms(model, [batch()], loss_fn=lambda model, batch: model(batch[0])[1].mean()).layers
    assert layer.output == pytest.approx(1.0)


def test_sparse_gradients_count_as_dense_ones():
    def found(sparse):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3))
        return gradient_norms(model, [torch.tensor([1, 1, 2])], loss_fn=lambda model, x: model(x).square().mean())

    assert found(sparse=True) == found(sparse=False)


def test_a_dead_layer_has_zeros_and_no_slope_and_nan_stays_nan():
    model = network(norm=False)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = gradient_norms(model, [batch()], loss_fn=loss_fn)
    assert found.layers[0].parameters == found.layers[0].output == 0
    assert math.isnan(found.decades_per_layer())
    with torch.no_grad():
        model[0].bias.fill_(math.nan)
    found = gradient_norms(model, [batch()], loss_fn=loss_fn)
    assert math.isnan(found.loss)
    assert all(math.isnan(value) for layer in found.layers for value in layer.numbers().values())


def test_parameters_read_by_others_and_parameters_of_zero():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return F.linear(x, self.layer.weight)

    model = Reads().double()
    nn.init.zeros_(model.layer.weight)
    nn.init.zeros_(model.layer.bias)
    (layer,) = gradient_norms(model, [batch()], loss_fn=loss_fn).layers
    assert layer.parameters > 0
    assert math.isnan(layer.output)
    assert math.isnan(layer.relative)


def test_nothing_of_the_model_moves():
    model = network()
    before, hooks = copy.deepcopy(model.state_dict()), [len(module._forward_hooks) for module in model.modules()]
    gradient_norms(model, [batch(), batch(seed=2)], loss_fn=loss_fn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_layers_are_chosen_by_patterns():
    found = gradient_norms(network(), [batch()], loss_fn=loss_fn, layers=["4", "1"])
    assert [layer.layer for layer in found.layers] == ["1", "4"]
    with pytest.raises(UnknownNameError, match="No layer with trainable parameters matches 'fc'; there are: 0, 1, 4"):
        gradient_norms(network(), [batch()], loss_fn=loss_fn, layers="fc")
    alone = nn.BatchNorm1d(4).double()
    with pytest.raises(ValueError, match=r"None of the layers with trained parameters \(''\) has one of two or more"):
        gradient_norms(alone, [batch()], loss_fn=lambda model, batch: model(batch[0]).square().mean())
