import importlib
import os
import sys
import sysconfig
from types import SimpleNamespace

import pytest

from bn_lightning.analysis.own_code import check_same_code, module_digest, own_code, own_folders
from bn_lightning.analysis.worker_process import WorkerError

TEXT = """
import math
from collections import OrderedDict

RATE = 0.1
seen = 0

def make(width=3):
    global seen
    seen += 1
    return lambda: width * 2

class Net:
    def forward(self, x):
        return x + 1

    @property
    def half(self):
        return self.forward(1) / 2

    @staticmethod
    def of(x):
        return x
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Imports a module of that text, under a name that no other test uses."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"own_{tmp_path.name}"

    def load(text=TEXT):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield load
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("RATE = 0.1", "RATE = 0.25"),
        ("seen += 1", "seen += 2"),
        ("width * 2", "width * 7"),
        ("x + 1", "x + 10"),
        ("/ 2", "/ 22"),
        ("return x\n", "return -x\n"),
    ],
)
def test_a_module_that_does_something_else_has_another_digest(own, written, instead):
    assert module_digest(own()) != module_digest(own(TEXT.replace(written, instead)))


@pytest.mark.parametrize("text", [TEXT, "# a comment\n" + TEXT, TEXT.replace("width", "width ")])
def test_a_module_that_is_only_written_otherwise_has_the_same(own, text):
    assert module_digest(own()) == module_digest(own(text))


def test_what_its_own_functions_assign_to_is_state(own):
    module = own()
    before = module_digest(module)
    module.make()
    assert module.seen == 1
    assert module_digest(module) == before


def test_modules_of_users_count_and_those_of_libraries_do_not(own):
    name = own().__name__
    found = own_code()
    assert name in found
    assert "tiny" in found or "tiny" not in sys.modules
    assert not {"torch", "os", "bn_lightning.analysis.own_code", "__main__", __name__} & set(found)


def test_folders_of_ones_own_are_those_without_installed_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), sysconfig.get_paths()["purelib"], str(tmp_path)])
    assert own_folders() == (os.getcwd(), str(tmp_path))


def test_another_version_of_a_module_is_named(own, monkeypatch):
    module = own()
    here = own_code()
    check_same_code(here)
    check_same_code({**here, "not_imported_here": "0123456789ab", "math": "0123456789ab"})
    message = rf"other versions of {module.__name__} \(.*\.py\).*Restart the workers"
    with pytest.raises(WorkerError, match=message):
        check_same_code({module.__name__: "0123456789ab"})
    # What a module holds may change while it is used; it counts as it was when it was first looked at.
    module.RATE = 7.0
    check_same_code(here)
    monkeypatch.setitem(sys.modules, module.__name__, SimpleNamespace())
    check_same_code(here)
