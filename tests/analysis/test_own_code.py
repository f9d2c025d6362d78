import importlib
import os
import sys
import sysconfig
from types import SimpleNamespace

import pytest

from bn_lightning.analysis.own_code import check_same_code, module_digest, own_code, own_folders, worker_mark
from bn_lightning.analysis.worker_process import WorkerError

TEXT = """
import functools
import math
from collections import OrderedDict

RATE = 0.1
seen = 0
lazy = None

def make(width=3):
    global seen
    seen += 1
    return lambda: width * 2

def kept(function):
    return functools.wraps(function)(lambda *given: function(*given))

@functools.lru_cache
def twice(x):
    return 2 * x

class Net:
    width = 64
    shape = (1, 28)

    @kept
    def step(self):
        return 12

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
        ("width=3", "width=5"),
        ("x + 1", "x + 10"),
        ("/ 2", "/ 22"),
        ("width = 64", "width = 128"),
        ("(1, 28)", "(1, 32)"),
        ("return 12", "return 13"),
        ("2 * x", "3 * x"),
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


IN_EVERY_PROCESS = """
import os, socket, tempfile, time, uuid
from pathlib import Path

PID, HOST, STARTED = os.getpid(), socket.gethostname(), time.time()
TOKEN = uuid.uuid4().hex
SCRATCH = tempfile.mkdtemp()
RANK = int(os.environ.get("LOCAL_RANK", 0))
ROOT = str(Path(__file__).parent)
FAST = None
if TOKEN[0] in "01234567":
    FAST = True
built = None

def age(now=time.time()):
    return now - STARTED

def build():
    global built
    built = lambda: 1

class Net:
    made = 0

    def __init__(self):
        Net.made += 1
"""


def test_what_differs_between_healthy_processes_does_not_count(own, monkeypatch):
    digests = set()
    for rank in range(8):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        module = own(IN_EVERY_PROCESS)
        for _ in range(rank):
            module.Net()
            module.build()
        digests.add(module_digest(module))
    assert len(digests) == 1


def test_lists_and_dicts_mark_workers_and_may_change_in_use(own):
    text = "SETTINGS = {'lr': 0.1}\nclass Net:\n    widths = [1, 2]\n"
    module = own(text)
    marks, digests = [worker_mark()], {module_digest(module)}
    for written, instead in (("0.1", "0.2"), ("[1, 2]", "[1, 3]")):
        marks.append(worker_mark() if own(text.replace(written, instead)) else {})
    module = own(text)
    module.SETTINGS["lr"] = 0.3
    digests.add(module_digest(module))
    assert len({mark[module.__name__] for mark in [*marks, worker_mark()]}) == 4
    assert len(digests) == 1


def test_a_module_whose_file_is_gone_counts_by_its_functions(own, tmp_path):
    module = own()
    (tmp_path / f"{module.__name__}.py").unlink()
    one = module_digest(module)
    module.make = module.Net.of
    assert module_digest(module) != one


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
