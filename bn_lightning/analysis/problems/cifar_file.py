"""CIFAR-10 as one file in a folder: reading and checking it."""

from pathlib import Path

import numpy as np

from bn_lightning.errors import RunFolderError

FILE_NAMES = ("cifar10.npz", "cifar10_small.npz")
SIDE = 32
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def cifar_path(folder: Path | None) -> Path:
    """The file with CIFAR-10 in a folder, the whole set before a subset.

    Args:
        folder: Where to look; None if none was named.

    Returns:
        The file.

    Raises:
        RunFolderError: If there is none.
    """
    for name in FILE_NAMES if folder is not None else ():
        path = Path(str(folder)) / name
        if path.is_file():
            return path
    where = "no folder was named" if folder is None else f"{folder} holds none"
    raise RunFolderError(
        f"CIFAR-10 is read from {' or '.join(FILE_NAMES)}, and {where}. Put the file (uint8 arrays x_train "
        "[n, 32, 32, 3], y_train [n], x_test, y_test) into a folder, and name it by --data-dir or BN_LIGHTNING_DATA."
    )


def read_cifar(folder: Path | None) -> dict[str, np.ndarray]:
    """Read `cifar10.npz`, or a subset called `cifar10_small.npz`, from a folder.

    Source: Krizhevsky (2009), "Learning multiple layers of features from tiny images". Nothing is downloaded.

    Args:
        folder: The folder.

    Returns:
        x_train and x_test `[n, 32, 32, 3]`, y_train and y_test `[n]`, uint8.

    Raises:
        RunFolderError: If there is no such file, or it cannot be read.
    """
    path = cifar_path(folder)
    try:
        # allow_pickle=False: a data file must not be able to run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in _ARRAYS}
    except Exception as error:  # numpy raises zipfile, zlib, KeyError, EOFError, … for a damaged file
        raise RunFolderError(
            f"{path} cannot be read as CIFAR-10: {type(error).__name__}: {error}. Expected are the arrays "
            f"{', '.join(_ARRAYS)}."
        ) from error
    for part in ("train", "test"):
        images, classes = arrays[f"x_{part}"], arrays[f"y_{part}"]
        kinds = {images.dtype, classes.dtype}
        if images.shape != (len(classes), SIDE, SIDE, 3) or classes.ndim != 1 or kinds != {np.dtype(np.uint8)}:
            raise RunFolderError(
                f"{path} is not CIFAR-10: x_{part} is {images.dtype} of shape {images.shape}, y_{part} {classes.dtype} "
                f"of shape {classes.shape}; expected are uint8 images [n, 32, 32, 3] and as many classes [n]."
            )
    return arrays
