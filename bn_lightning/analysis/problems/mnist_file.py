"""MNIST as one file: where it lies, reading it, downloading it through scikit-learn."""

import os
from pathlib import Path

import numpy as np

from bn_lightning.errors import RunFolderError

DATA_VARIABLE = "BN_LIGHTNING_DATA"
FILE_NAME = "mnist.npz"
SHAPES = {"x_train": 3, "y_train": 1, "x_test": 3, "y_test": 1}


def data_folder(data_dir: str | Path | None = None) -> Path | None:
    """The folder with MNIST that was asked for, or None for the embedded digits.

    Args:
        data_dir: The folder; by default the one that the environment variable BN_LIGHTNING_DATA names.

    Returns:
        The folder, absolute.
    """
    named = data_dir or os.environ.get(DATA_VARIABLE)
    return Path(named).expanduser().absolute() if named else None


def named_by_environment(folder: str | Path | None) -> dict[str, str]:
    """What the environment must say for a folder with MNIST to be found without being named.

    Args:
        folder: The folder that was read, or None for the embedded digits.

    Returns:
        The environment variable with its value, if it is what names the folder here; else nothing.

    Example:
        >>> named_by_environment(None)
        {}
    """
    named = os.environ.get(DATA_VARIABLE)
    return {DATA_VARIABLE: named} if named and folder is not None and data_folder(named) == Path(folder) else {}


def read_mnist(folder: Path) -> dict[str, np.ndarray]:
    """Read `mnist.npz` from a folder; download it into the folder first if it is not there.

    Args:
        folder: The folder; made if need be.

    Returns:
        x_train and x_test `[n, 28, 28]`, y_train and y_test `[n]`, uint8.

    Raises:
        RunFolderError: If the file cannot be read or downloaded.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        download_mnist(path)
    try:
        # allow_pickle=False: a data file must not be able to run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in SHAPES}
    except Exception as error:  # numpy raises zipfile, zlib, KeyError, EOFError, … for a damaged file
        raise RunFolderError(
            f"{path} cannot be read as MNIST: {type(error).__name__}: {error}. Expected are the arrays "
            f"{', '.join(SHAPES)}; remove the file to have it downloaded again."
        ) from error
    for name, dimensions in SHAPES.items():
        array = arrays[name]
        if array.ndim != dimensions or array.dtype != np.uint8 or len(array) != len(arrays["y" + name[1:]]):
            raise RunFolderError(
                f"{path} is not MNIST: {name} is {array.dtype} of shape {array.shape}; expected are uint8 images "
                "[n, 28, 28] and as many digits [n]. Remove the file to have it downloaded again."
            )
    return arrays


def download_mnist(path: Path) -> None:
    """Download MNIST through scikit-learn's fetch_openml and write it as one file, in one step.

    Args:
        path: Where to.

    Raises:
        RunFolderError: If that fails, as it does without a network.
    """
    from sklearn.datasets import fetch_openml

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        images, digits = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except Exception as error:
        raise RunFolderError(
            f"There is no {path}, and MNIST could not be downloaded: {type(error).__name__}: {error}. Put {FILE_NAME} "
            f"(uint8 arrays {', '.join(SHAPES)}) into that folder, or name no folder to use the embedded digits."
        ) from error
    images = np.asarray(images).reshape(-1, 28, 28).astype(np.uint8)
    labels = np.asarray(digits).astype(np.uint8)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(
                file, x_train=images[:60000], y_train=labels[:60000], x_test=images[60000:], y_test=labels[60000:]
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
