"""Read and write checkpoint files: a new one appears whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bn_lightning.errors import RunFolderError


def read_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a Lightning checkpoint onto the CPU.

    Args:
        path: The file.
        trust: Whether it may run code, as pickled objects in it do.

    Returns:
        Its dictionary.

    Raises:
        RunFolderError: If there is no such file, or it is no Lightning checkpoint.
    """
    if not path.is_file():
        raise RunFolderError(
            f"There is no checkpoint {path}; name a file that Lightning's ModelCheckpoint has written."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        advice = "" if trust else " If it holds objects of your own and you trust its origin, use trust=True (--trust)."
        raise RunFolderError(f"{path} cannot be read as a checkpoint: {words[0]}{advice}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise RunFolderError(f"{path} is no checkpoint of Lightning: it holds no state_dict.")
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: Path, *, like: Path) -> None:
    """Write a checkpoint beside its final place and move it there once it is whole.

    Args:
        checkpoint: The dictionary.
        path: Where to; a file that is there is replaced, at once.
        like: A file whose permissions the new one gets.

    Raises:
        RunFolderError: If it cannot be written: a read-only folder, a full disk. Nothing is left of it then.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            _save(checkpoint, file)
            file.flush()
            # Else a crash of the machine could leave the new name with an empty file.
            os.fsync(file.fileno())
        shutil.copymode(like, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RunFolderError(
            f"The recalibrated checkpoint could not be written to {path} ({error.strerror or error}); {like} is as it "
            "was. Name another place by out (--out)."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


class _Watched:
    """A file that remembers why it could not be written, as torch replaces that error by one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    watched = _Watched(file)
    try:
        torch.save(checkpoint, watched)  # type: ignore[arg-type] # write and flush are all it uses
    except Exception:
        if watched.error is not None:
            raise watched.error from None
        raise
