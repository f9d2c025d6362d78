import numpy as np
import pytest
import torch
from torch import nn

from bn_lightning.analysis.problems.digits import digits_problem
from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.digits_model import DigitsMLP
from bn_lightning.errors import UnknownNameError


def embedded(**options):
    data = DigitsData(**options)
    data.setup()
    return data


def test_the_embedded_digits_are_split_without_overlap_into_all_of_them():
    from sklearn.datasets import load_digits

    sets = embedded().sets
    assert {name: len(part.digits) for name, part in sets.items()} == {"train": 1293, "validation": 144, "test": 360}
    images, digits = load_digits(return_X_y=True)
    found = torch.cat([torch.cat([part.images * 16, part.digits[:, None].float()], 1) for part in sets.values()])
    expected = np.concatenate([images, digits[:, None]], 1)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert (found[:, :-1].min(), found[:, :-1].max()) == (0, 16)


def test_every_set_holds_every_digit_in_its_share():
    for part in embedded().sets.values():
        share = torch.bincount(part.digits, minlength=10) / len(part.digits)
        assert (share - 0.1).abs().max() < 0.02


def test_the_split_never_changes():
    one, other = embedded(), embedded()
    assert all(torch.equal(one.sets[name].images, other.sets[name].images) for name in one.sets)


def test_training_batches_are_60_shuffled_samples_each_taken_once():
    data = embedded()
    torch.manual_seed(0)
    batches = list(data.train_dataloader())
    assert [images.shape for images, _ in batches] == [(60, 64)] * 21
    seen = torch.cat([images for images, _ in batches])
    assert len(set(map(tuple, seen.tolist()))) > 1250
    torch.manual_seed(0)
    assert torch.equal(next(iter(data.train_dataloader()))[0], batches[0][0])
    torch.manual_seed(1)
    assert not torch.equal(next(iter(data.train_dataloader()))[0], batches[0][0])


def test_a_batch_keeps_images_and_digits_together():
    data = embedded()
    known = {tuple(image): digit for image, digit in zip(*_lists(data.sets["train"]), strict=True)}
    images, digits = next(iter(data.train_dataloader()))
    assert [known[tuple(image)] for image in images.tolist()] == digits.tolist()
    one, digit = data.train_dataloader().dataset[5]
    assert known[tuple(one.tolist())] == digit


def _lists(part):
    return part.images.tolist(), part.digits.tolist()


@pytest.mark.parametrize(("evaluate", "count"), [("test", 360), ("validation", 144)])
def test_the_set_that_is_evaluated_on(evaluate, count):
    data = embedded(evaluate=evaluate)
    assert sum(len(digits) for _, digits in data.val_dataloader()) == count
    assert sum(len(digits) for _, digits in data.test_dataloader()) == 360


def test_an_unknown_set_is_refused():
    with pytest.raises(UnknownNameError, match="no set to evaluate on 'train'"):
        DigitsData(evaluate="train")


def test_the_network_is_that_of_the_paper():
    torch.manual_seed(0)
    net = DigitsMLP(pixels=784, weight_std=0.05)
    layers = [layer for layer in net.net if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(100, 784), (100, 100), (100, 100), (10, 100)]
    assert [type(layer) for layer in net.net][1::2] == [nn.Sigmoid] * 3
    assert all((layer.bias == 0).all() for layer in layers)
    # Standard error of a standard deviation of 78,400 draws: 0.05 / sqrt(2 · 78400) ≈ 1.3e-4.
    assert layers[0].weight.std().item() == pytest.approx(0.05, abs=6e-4)
    optimizer = net.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (1.0, 0)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UnknownNameError, match=r"no activation 'sigmoit'. Did you mean 'sigmoid'"):
        DigitsMLP(activation="sigmoit")


def test_the_problem_passes_its_options_on(monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    problem = digits_problem(evaluate="validation", lr=0.25, activation="relu")
    assert problem.monitor == "validation_accuracy"
    net = problem.module()
    assert (net.lr, net.evaluate) == (0.25, "validation")
    assert isinstance(net.net[1], nn.ReLU)
    assert problem.module(lr=0.5).lr == 0.5
    assert problem.data().evaluate == "validation"
    assert dict(net.named_modules())[problem.layer_of_interest].out_features == 100
