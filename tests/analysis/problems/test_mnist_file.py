import numpy as np
import pytest
import sklearn.datasets
import torch

from bn_lightning.analysis.problems.digits_data import DigitsData
from bn_lightning.analysis.problems.mnist_file import data_folder, read_mnist
from bn_lightning.errors import RunFolderError


def arrays(train=200, test=50):
    draw = np.random.default_rng(0)
    made = {}
    for name, count in (("train", train), ("test", test)):
        made[f"x_{name}"] = draw.integers(0, 256, size=(count, 28, 28), dtype=np.uint8)
        made[f"y_{name}"] = np.arange(count, dtype=np.uint8) % 10
    return made


def test_pixels_are_one_above_127_and_else_zero(tmp_path):
    made = arrays()
    np.savez(tmp_path / "mnist.npz", **made)
    data = DigitsData(data_dir=tmp_path)
    data.setup()
    expected = torch.from_numpy((made["x_test"].reshape(50, 784) >= 128).astype(np.float32))
    assert torch.equal(data.sets["test"].images, expected)
    assert data.sets["test"].digits.tolist() == made["y_test"].tolist()
    assert [len(data.sets[name].digits) for name in ("train", "validation")] == [180, 20]


def test_a_file_that_is_broken_is_named(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"PK not a zip file")
    with pytest.raises(RunFolderError, match=r"mnist\.npz cannot be read as MNIST.*downloaded again"):
        read_mnist(tmp_path)


def test_a_file_cut_short_is_named(tmp_path):
    np.savez_compressed(tmp_path / "mnist.npz", **arrays())
    whole = (tmp_path / "mnist.npz").read_bytes()
    (tmp_path / "mnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFolderError, match="cannot be read as MNIST"):
        read_mnist(tmp_path)


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=arrays()["x_train"])
    with pytest.raises(RunFolderError, match=r"cannot be read as MNIST: KeyError.*y_train"):
        read_mnist(tmp_path)


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    made = arrays() | {"y_test": np.array([object()], dtype=object)}
    np.savez(tmp_path / "mnist.npz", **made)
    with pytest.raises(RunFolderError, match="cannot be read as MNIST: ValueError"):
        read_mnist(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x_train": np.zeros((200, 784), np.uint8)},
        {"y_test": np.zeros(49, np.uint8)},
        {"x_test": np.zeros((50, 28, 28), np.float32)},
    ],
)
def test_arrays_of_another_shape_or_kind_are_named(tmp_path, wrong):
    np.savez(tmp_path / "mnist.npz", **(arrays() | wrong))
    with pytest.raises(RunFolderError, match=r"is not MNIST: \w+ is"):
        read_mnist(tmp_path)


def test_a_named_folder_without_the_file_gets_it_downloaded_once(tmp_path, monkeypatch):
    draw = np.random.default_rng(1)
    images, digits = draw.integers(0, 256, size=(70_000, 784)).astype(float), np.arange(70_000) % 10
    calls = []

    def fetch(name, **_):
        calls.append(name)
        return images, digits.astype(str)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    folder = tmp_path / "new"
    first, second = read_mnist(folder), read_mnist(folder)
    assert calls == ["mnist_784"]
    assert np.array_equal(first["x_test"], images[60_000:].reshape(-1, 28, 28))
    assert np.array_equal(first["y_train"], digits[:60_000])
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert [path.name for path in folder.iterdir()] == ["mnist.npz"]


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def fetch(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    with pytest.raises(RunFolderError, match=r"could not be downloaded: OSError: no network. Put mnist.npz"):
        read_mnist(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_the_one_asked_for_then_the_variables_then_none(tmp_path, monkeypatch):
    monkeypatch.delenv("BN_LIGHTNING_DATA", raising=False)
    assert data_folder() is None
    monkeypatch.setenv("BN_LIGHTNING_DATA", str(tmp_path / "variable"))
    assert data_folder() == tmp_path / "variable"
    assert data_folder(tmp_path) == tmp_path
    monkeypatch.setenv("BN_LIGHTNING_DATA", "")
    assert data_folder() is None
