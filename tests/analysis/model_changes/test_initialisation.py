import pytest
import torch
from inserted import Lit, data, loader, module, trainer
from torch import nn
from torch.testing import assert_close

from bn_lightning.analysis.model_changes.initialisation import SCHEMES, Initialise
from bn_lightning.analysis.model_changes.lsuv import scale_to_unit_variance
from bn_lightning.callbacks import BatchNormInsertion
from bn_lightning.errors import UnknownNameError


def changed(tmp_path, model, *callbacks):
    torch.manual_seed(3)
    trainer(tmp_path, *callbacks, max_steps=0).fit(model, loader())
    return model


def layers_of(model):
    return [layer for layer in model.net if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("scheme", "std"), [("gaussian", 0.01), ("kaiming", (2 / 500) ** 0.5)])
def test_weights_have_the_standard_deviation_of_the_scheme(tmp_path, scheme, std):
    model = changed(tmp_path, module(width=500), Initialise(scheme))
    # Of 250,000 draws, whose standard deviation has a standard error of std / √(2n).
    assert model.net[2].weight.std().item() == pytest.approx(std, abs=5 * std / 500_000**0.5)
    assert all((layer.bias == 0).all() for layer in layers_of(model))


def test_orthogonal_rows(tmp_path):
    weight = changed(tmp_path, module(), Initialise("orthogonal")).net[2].weight
    assert_close(weight @ weight.T, torch.eye(8))


def test_lsuv_leaves_every_output_with_unit_variance_on_the_first_batch(tmp_path):
    model = changed(tmp_path, module(), Initialise("lsuv"))
    hidden = data()[:8][0]
    for part in model.net:
        hidden = part(hidden)
        if isinstance(part, nn.Linear):
            assert abs(hidden.double().var(correction=0).item() - 1) < 0.1
            # Still a multiple of an orthonormal matrix.
            gram = part.weight @ part.weight.T if part.weight.shape[0] <= part.weight.shape[1] else None
            if gram is not None:
                assert_close(gram / gram[0, 0], torch.eye(len(gram)))


def test_lsuv_takes_the_same_weights_with_and_without_norms_and_leaves_no_trace(tmp_path):
    plain = changed(tmp_path, module(), Initialise("lsuv"))
    normed = changed(tmp_path, module(), Initialise("lsuv"), BatchNormInsertion())
    for one, other in zip(layers_of(plain), layers_of(normed), strict=True):
        assert_close(one.weight, other.weight, rtol=0, atol=0)
    assert plain.training
    assert all(parameter.grad is None for parameter in plain.parameters())


def test_lsuv_of_a_step_that_optimizes_by_hand(tmp_path):
    class ByHand(Lit):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    model = changed(tmp_path, module(kind=ByHand), Initialise("lsuv"))
    assert abs(model.net[0](data()[:8][0]).double().var(correction=0).item() - 1) < 0.1


def test_scaling_stops_after_its_tries():
    # The variance of its output is 4 whatever the weight, so no scaling settles it.
    layer = nn.Linear(1, 1, bias=False)
    calls = []

    def run():
        calls.append(None)
        layer(torch.tensor([[1.0], [-1.0]]) * 2 / layer.weight.detach().abs())

    scale_to_unit_variance({"layer": layer}, run, tries=4)
    assert len(calls) == 1 + 4


def test_layers_are_scaled_in_the_order_of_the_forward_and_those_not_called_stay():
    torch.manual_seed(0)
    late, early, unused = nn.Linear(6, 6), nn.Linear(4, 6), nn.Linear(2, 2)
    kept, inputs = unused.weight.detach().clone(), torch.randn(50, 4)
    found = scale_to_unit_variance({"late": late, "early": early, "unused": unused}, lambda: late(early(inputs).relu()))
    assert list(found) == ["early", "late"]
    assert late(early(inputs).relu()).double().var(correction=0).item() == pytest.approx(found["late"])
    assert_close(unused.weight, kept, rtol=0, atol=0)


@pytest.mark.parametrize(("inputs", "variance"), [(torch.ones(4, 3), r"0\.0"), (torch.full((4, 3), torch.inf), "nan")])
def test_an_output_without_variance_is_named(inputs, variance):
    layer = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=rf"'net\.7' by the standard deviation of its output, .* is {variance}\."):
        scale_to_unit_variance({"net.7": layer}, lambda: layer(inputs))


def test_a_computed_weight_is_refused(tmp_path):
    model = module()
    nn.utils.parametrizations.weight_norm(model.net[2])
    with pytest.raises(ValueError, match=r"The weights of net\.2 in Lit are computed"):
        changed(tmp_path, model, Initialise("kaiming"))


def test_a_model_without_layers_is_refused(tmp_path):
    class Recurrent(Lit):
        def __init__(self):
            super().__init__()
            self.net = nn.RNN(4, 3)

        def forward(self, x):
            return self.net(x)[0]

    with pytest.raises(ValueError, match="Recurrent has no linear layer and no convolution"):
        changed(tmp_path, module(kind=Recurrent), Initialise("kaiming"))


def test_an_unknown_scheme_is_answered_with_the_near_ones():
    with pytest.raises(UnknownNameError, match=r"no initialisation 'kaming'. Did you mean 'kaiming'"):
        Initialise("kaming")
    assert len(SCHEMES) == 4
