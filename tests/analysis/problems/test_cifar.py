"""CIFAR-10 from synthetic files of its form, and from the real one where a folder is named."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bn_lightning as bnl
from bn_lightning.analysis.problems.cifar import cifar_problem
from bn_lightning.analysis.problems.cifar_data import CifarData
from bn_lightning.analysis.problems.cifar_file import cifar_path, read_cifar
from bn_lightning.analysis.problems.nin import NIN
from bn_lightning.analysis.problems.vgg import VGG
from bn_lightning.errors import RunFolderError, UnknownNameError


def arrays(train=200, test=50):
    draw = np.random.default_rng(0)
    made = {}
    for name, count in (("train", train), ("test", test)):
        made[f"x_{name}"] = draw.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)
        made[f"y_{name}"] = (np.arange(count) % 10).astype(np.uint8)
    return made


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "cifar10_small.npz", **arrays())
    return tmp_path


def test_images_are_standardised_by_the_training_images_and_channels_come_first(folder):
    data = CifarData(data_dir=folder)
    data.setup()
    made = arrays()
    assert {name: tuple(images.shape) for name, (images, _) in data.sets.items()} == {
        "train": (180, 3, 32, 32),
        "validation": (20, 3, 32, 32),
        "test": (50, 3, 32, 32),
    }
    # Classes come in turn, so that the tenth image of each class is among rows 90 to 99.
    held_out = np.isin(np.arange(200), [*range(90, 100), *range(190, 200)])
    raw = made["x_train"][~held_out].astype(np.float64)
    expected = (made["x_test"] - raw.mean((0, 1, 2))) / raw.std((0, 1, 2))
    assert_close(data.sets["test"][0], torch.from_numpy(expected.transpose(0, 3, 1, 2)).float())
    assert data.sets["validation"][1].bincount().tolist() == [2] * 10
    assert data.sets["test"][1].tolist() == made["y_test"].tolist()


def test_batches_are_shuffled_and_keep_images_and_classes_together(folder):
    data = CifarData(data_dir=folder, batch_size=32)
    data.setup()
    known = {image.sum().item(): kind.item() for image, kind in zip(*data.sets["train"], strict=True)}
    torch.manual_seed(0)
    batches = list(data.train_dataloader())
    assert [len(kinds) for _, kinds in batches] == [32] * 5
    assert all(known[image.sum().item()] == kind.item() for part in batches for image, kind in zip(*part, strict=True))
    assert sum(len(kinds) for _, kinds in data.val_dataloader()) == 50
    assert sum(len(kinds) for _, kinds in data.test_dataloader()) == 50
    one, kind = data.train_dataloader().dataset[5]
    assert torch.equal(one, data.sets["train"][0][5])
    assert kind == data.sets["train"][1][5]
    validation = CifarData(data_dir=folder, evaluate="validation")
    validation.setup()
    assert sum(len(kinds) for _, kinds in validation.val_dataloader()) == 20


def test_the_whole_set_comes_before_a_subset(folder):
    assert cifar_path(folder).name == "cifar10_small.npz"
    np.savez(folder / "cifar10.npz", **arrays(train=300))
    assert cifar_path(folder).name == "cifar10.npz"
    assert len(read_cifar(folder)["y_train"]) == 300


def test_a_folder_without_the_file_is_named_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    with pytest.raises(RunFolderError, match=re.escape(f"cifar10.npz or cifar10_small.npz, and {tmp_path} holds none")):
        read_cifar(tmp_path)
    with pytest.raises(RunFolderError, match=r"and no folder was named\. Put the file"):
        cifar_problem()


def test_a_file_that_is_broken_or_would_run_code_is_named(tmp_path):
    path = tmp_path / "cifar10.npz"
    path.write_bytes(b"PK not a zip file")
    with pytest.raises(RunFolderError, match=r"cifar10\.npz cannot be read as CIFAR-10"):
        read_cifar(tmp_path)
    np.savez(path, **(arrays() | {"y_test": np.array([object()], dtype=object)}))
    with pytest.raises(RunFolderError, match="cannot be read as CIFAR-10: ValueError"):
        read_cifar(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x_train": np.zeros((200, 3, 32, 32), np.uint8)},
        {"y_test": np.zeros(49, np.uint8)},
        {"x_test": np.zeros((50, 32, 32, 3), np.float32)},
        {"y_train": np.zeros((200, 1), np.uint8)},
    ],
)
def test_arrays_of_another_shape_or_kind_are_named(tmp_path, wrong):
    np.savez(tmp_path / "cifar10.npz", **(arrays() | wrong))
    with pytest.raises(RunFolderError, match=r"is not CIFAR-10: x_\w+ is .* of shape .* y_\w+"):
        read_cifar(tmp_path)


def test_unknown_sets_and_networks_are_refused(folder):
    with pytest.raises(UnknownNameError, match="no set to evaluate on 'train'"):
        CifarData(evaluate="train")
    with pytest.raises(UnknownNameError, match=r"no network 'vg'. Did you mean 'vgg'"):
        cifar_problem("vg", data_dir=folder)


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: VGG(width=2), [2, 4, 8, 8, 16, 16, 16, 16]),
        (lambda: VGG(width=2, convolutions=6), [2, 4, 8, 8, 16, 16]),
        (lambda: NIN(width=12), [12, 10, 6, 12, 12, 12, 12, 12, 10]),
    ],
)
def test_every_relu_gets_a_norm_and_glorot_weights_lie_in_front(make, channels):
    torch.manual_seed(0)
    model = make()
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == channels
    for layer in layers:
        assert (layer.bias == 0).all()
        positions = layer.kernel_size[0] ** 2
        bound = (6 / (positions * (layer.in_channels + layer.out_channels))) ** 0.5
        assert 0.7 * bound < layer.weight.abs().max() <= bound
    plan = bnl.insert_batch_norm(model, (model.example_input_array,))
    relus = sum(isinstance(part, nn.ReLU) for part in model.modules())
    assert len(plan.inserted) == len(plan.sites) == relus
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_sizes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="A VGG here has 6 or 8 convolutions, not 7"):
        VGG(convolutions=7)
    with pytest.raises(ValueError, match="a positive multiple of 12, not 20"):
        NIN(width=20)


@pytest.mark.parametrize("network", ["vgg", "nin"])
def test_the_problem_trains_in_a_trainer(folder, network, tmp_path):
    import pytorch_lightning as pl

    problem = cifar_problem(network, data_dir=folder, width=12, lr=0.05, evaluate="validation")
    assert (problem.name, problem.monitor) == (f"cifar10_small_{network}", "validation_accuracy")
    torch.manual_seed(0)
    model, data = problem.module(), problem.data()
    assert problem.module(lr=0.5).lr == 0.5
    before = [part.detach().clone() for part in model.parameters()]
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)
    images, classes = data.sets["validation"]
    hits = (model.eval()(images).argmax(1) == classes).float().mean()
    assert_close(trainer.callback_metrics["validation_accuracy"], hits)
    assert not all(torch.equal(part, old) for part, old in zip(model.parameters(), before, strict=True))
