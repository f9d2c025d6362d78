"""Checkpoint files appear whole or not at all, and unreadable ones say why."""

import os
import pathlib
import tempfile

import pytest
import torch

from bn_lightning.analysis.checkpoint_file import read_checkpoint, write_checkpoint
from bn_lightning.errors import RunFolderError

SAVED = {"state_dict": {"weight": torch.arange(5.0)}, "global_step": 3}


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(SAVED, path)
    path.chmod(0o640)
    return path


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_again_with_the_permissions_of_the_old_one(old, tmp_path):
    write_checkpoint(SAVED | {"more": 1}, tmp_path / "new.ckpt", like=old)
    found = read_checkpoint(tmp_path / "new.ckpt")
    assert torch.equal(found["state_dict"]["weight"], SAVED["state_dict"]["weight"])
    assert found["more"] == 1
    assert (tmp_path / "new.ckpt").stat().st_mode == old.stat().st_mode
    assert sorted(listing(tmp_path)) == ["new.ckpt", "old.ckpt"]


def test_a_full_disk_leaves_everything_as_it_was(old, tmp_path, monkeypatch):
    """/dev/full is Linux' own: every write to it fails as on a full disk."""
    (tmp_path / "new.ckpt").write_bytes(b"an earlier one")
    before = listing(tmp_path)
    made = tempfile.mkstemp

    def full(**options):
        descriptor, name = made(**options)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", full)
    large = {"state_dict": {"weight": torch.zeros(100_000)}}
    with pytest.raises(RunFolderError, match=r"could not be written to .*new.ckpt \(No space left.*--out"):
        write_checkpoint(large, tmp_path / "new.ckpt", like=old)
    assert listing(tmp_path) == before


def test_a_folder_that_cannot_be_written_to(old, tmp_path, monkeypatch):
    with pytest.raises(RunFolderError, match=r"could not be written to .*No such file"):
        write_checkpoint(SAVED, tmp_path / "missing" / "new.ckpt", like=old)

    def read_only(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    with pytest.raises(RunFolderError, match=r"could not be written to .*Permission denied.*old.ckpt is as it was"):
        write_checkpoint(SAVED, tmp_path / "new.ckpt", like=old)


def test_what_cannot_be_saved_is_the_callers_error_and_leaves_nothing(old, tmp_path):
    before = listing(tmp_path)
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint({"state_dict": {}, "function": lambda: None}, tmp_path / "new.ckpt", like=old)
    assert listing(tmp_path) == before


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(RunFolderError, match=r"There is no checkpoint .*absent.ckpt"):
        read_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(RunFolderError, match=r"text.ckpt cannot be read as a checkpoint: .*--trust"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(RunFolderError, match=r"other.pt is no checkpoint of Lightning: it holds no state_dict"):
        read_checkpoint(tmp_path / "other.pt")


def test_pickled_objects_need_trust(tmp_path):
    path = tmp_path / "pickled.ckpt"
    torch.save(SAVED | {"hyper_parameters": {"folder": pathlib.PurePosixPath("data")}}, path)
    with pytest.raises(RunFolderError, match=r"cannot be read as a checkpoint.*trust=True"):
        read_checkpoint(path)
    assert read_checkpoint(path, trust=True)["global_step"] == 3
