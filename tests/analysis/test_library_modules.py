import ntpath
import os
import posixpath
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from tiny import TinyNet

from bn_lightning.analysis.library_modules import (
    is_installed_at,
    is_library,
    is_users_to_import,
    module_name,
    own_bases,
)


def test_libraries_and_this_package_are_told_by_their_version():
    assert is_library("torch.nn.modules.activation")
    assert is_library("json")
    assert is_library("bn_lightning.analysis.study")
    assert not is_library("tiny")
    assert not is_library("__main__")


def test_folders_of_packages_are_told_from_users(tmp_path):
    assert is_installed_at(sysconfig.get_paths()["purelib"])
    assert is_installed_at(os.__file__)
    assert not is_installed_at(str(tmp_path))


def test_a_module_is_told_before_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "yet_of_mine.py").write_text("raise AssertionError\n")
    (tmp_path / "folder_of_mine").mkdir()  # a package without __init__
    assert is_users_to_import("yet_of_mine")
    assert is_users_to_import("folder_of_mine.inner")
    for name in ("torch.nn", "json", "sys", "bn_lightning.errors", "no_such_module_of_mine"):
        assert not is_users_to_import(name)
    assert "yet_of_mine" not in sys.modules


def test_code_beside_the_interpreter_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    beside = {
        "app_of_mine": tmp_path / "src" / "app.py",
        "more_of_mine": Path(sysconfig.get_paths()["stdlib"] + "2", "a.py"),
    }
    for name, path in beside.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].__file__ = str(path)
        assert not is_library(name)
    assert is_library("json")
    assert is_library("numpy")


def test_methods_of_bases_count_where_a_user_wrote_them():
    class Wider(TinyNet):
        def forward(self, x):
            return 2 * x

    assert own_bases(Wider) == [Wider, TinyNet]
    assert own_bases(dict) == []


@pytest.mark.parametrize("behind", [posixpath, ntpath])
def test_a_module_has_one_name_on_every_platform(monkeypatch, behind):
    monkeypatch.setattr(os, "path", behind)
    assert module_name(behind) == "os.path"
    assert module_name(sys) == "sys"
