import pytest
import torch
from inserted import Lit, loader, module, norms_of, trainer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.analysis.model_changes.hidden_activations import replace_module
from bn_lightning.analysis.model_changes.maxout import Maxout
from bn_lightning.analysis.model_changes.swap_activations import ACTIVATIONS, SwapActivations
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import NoSiteError, UnknownNameError


def changed(tmp_path, model, *callbacks):
    """The model as the callbacks leave it, before the first step."""
    trainer(tmp_path, *callbacks, max_steps=0).fit(model, loader())
    return model


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_every_nonlinearity_gets_its_norm_where_it_belongs(tmp_path, name, placement):
    model = module()
    callbacks = SwapActivations(name, placement=placement), BatchNormInsertion(placement=placement)
    trainer(tmp_path, *callbacks, max_epochs=1).fit(model, loader())
    kind = getattr(ACTIVATIONS[name], "func", ACTIVATIONS[name])
    assert [type(model.net[place]) for place in (1, 3)] == [kind, kind]
    width = 16 if name == "maxout" and placement == "before" else 8
    assert [(norm.num_features, int(norm.num_batches_tracked)) for norm in norms_of(model)] == [(width, 4)] * 2
    assert all((norm.weight != 1).any() for norm in norms_of(model))


def test_none_is_linear_to_the_bit(tmp_path):
    model = changed(tmp_path, module(), SwapActivations("none"))
    inputs = torch.randn(5, 4)
    linear = nn.Sequential(*(layer for layer in model.net if isinstance(layer, nn.Linear)))
    assert_close(model(inputs), linear(inputs), rtol=0, atol=0)


def test_the_norm_after_a_maxout_normalises_the_maximum_and_before_it_the_pieces(tmp_path):
    inputs = torch.randn(64, 4)
    for placement in ("before", "after"):
        callbacks = SwapActivations("maxout", placement=placement), BatchNormInsertion(placement=placement)
        model = changed(tmp_path, module(), *callbacks).train()
        seen = {}
        model.net[2].register_forward_pre_hook(lambda part, args, kept=seen: kept.update(following=args[0]))
        model(inputs)
        pieces = F.linear(inputs, model.net[0].weight, model.net[0].bias)
        scale = 1e-5  # epsilon of the norm
        if placement == "before":
            normal = (pieces - pieces.mean(0)) / (pieces.var(0, correction=0) + scale).sqrt()
            expected = torch.maximum(normal[:, :8], normal[:, 8:])
        else:
            largest = torch.maximum(pieces[:, :8], pieces[:, 8:])
            expected = (largest - largest.mean(0)) / (largest.var(0, correction=0) + scale).sqrt()
        assert_close(seen["following"], expected)


def test_the_second_piece_is_a_shuffle_of_the_first(tmp_path):
    model = module()
    before = model.net[0].weight.detach().clone()
    changed(tmp_path, model, SwapActivations("maxout"))
    first, second = model.net[0].weight.detach().chunk(2)
    assert_close(first, before, rtol=0, atol=0)
    assert_close(second.flatten().sort().values, before.flatten().sort().values, rtol=0, atol=0)
    assert not torch.equal(second, before)
    assert (model.net[0].out_features, model.net[4].in_features) == (16, 8)


class Convolving(Lit):
    def __init__(self):
        super().__init__()
        del self.net
        self.conv = nn.Conv1d(1, 3, 2)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        return self.last(self.act(self.conv(x[:, None])).flatten(1))


def test_maxout_of_a_convolution_takes_its_channels(tmp_path):
    model = changed(tmp_path, module(kind=Convolving), SwapActivations("maxout"), BatchNormInsertion())
    assert (model.conv.out_channels, model.act.dim) == (6, -2)
    pieces = torch.arange(12.0).reshape(1, 4, 3)
    assert_close(Maxout(dim=-2)(pieces), pieces[:, 2:])


class Shared(Lit):
    """One activation module for two layers, under two names, and a sigmoid head."""

    def __init__(self):
        super().__init__()
        del self.net
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.act = self.alias = nn.ReLU()
        self.head = nn.Sigmoid()

    def forward(self, x):
        return self.head(self.c(self.alias(self.b(self.act(self.a(x))))))


def test_a_shared_module_stays_shared_and_a_head_stays_itself(tmp_path):
    model = changed(tmp_path, module(kind=Shared), SwapActivations("maxout"))
    assert isinstance(model.act, Maxout)
    assert model.act is model.alias
    assert isinstance(model.head, nn.Sigmoid)
    assert (model.a.out_features, model.b.out_features, model.c.out_features) == (12, 10, 3)


class Functional(Lit):
    def forward(self, x):
        return self.net[4](F.relu(self.net[2](torch.tanh(self.net[0](x)))))


def test_functions_in_a_forward_are_named(tmp_path):
    message = r"functions called in a forward, not modules: torch\.tanh in its own forward, torch\.nn\.functional\.relu"
    with pytest.raises(ValueError, match=message):
        changed(tmp_path, module(kind=Functional), SwapActivations("elu"))


class Straight(Lit):
    def forward(self, x):
        return torch.sigmoid(self.net[0](x))[:, :3]


def test_a_model_without_hidden_nonlinearity(tmp_path):
    with pytest.raises(
        NoSiteError, match=r"Straight has no nonlinearity between its layers that could be swapped: .*head"
    ):
        changed(tmp_path, module(kind=Straight), SwapActivations("elu"))


class Mixed(Convolving):
    """One activation module behind a convolution and behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(9, 9)

    def forward(self, x):
        return self.last(self.act(self.hidden(self.act(self.conv(x[:, None])).flatten(1))))


def test_one_maxout_cannot_serve_channels_on_two_axes(tmp_path):
    with pytest.raises(ValueError, match=r"'act' serves the layers 'conv', 'hidden', whose channels lie on different"):
        changed(tmp_path, module(kind=Mixed), SwapActivations("maxout"))


class Summing(Lit):
    def forward(self, x):
        hidden = self.net[0](x)
        return self.net[4](self.net[1](hidden + self.net[2](hidden)))


def test_maxout_needs_a_layer_of_its_own(tmp_path):
    with pytest.raises(
        ValueError, match=r"feeds 'net\.1' and nothing else.*found was none .*Leave the arms with maxout"
    ):
        changed(tmp_path, module(kind=Summing), SwapActivations("maxout"))


def test_an_unknown_nonlinearity_is_answered_with_the_near_ones():
    with pytest.raises(UnknownNameError, match=r"no activation 'leaky'. Did you mean 'leaky_relu'"):
        SwapActivations("leaky")


def test_the_mode_of_training_is_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[1].eval()
    replace_module(model, model[1], nn.Dropout(0.5))
    assert not model[1].training
