import importlib
import textwrap

import pytest
from tiny import TinyNet

from bn_lightning.analysis.code_digest import code_digest, is_library, own_methods, read_elsewhere
from bn_lightning.analysis.configuration import describe

BLOCKS = """
    WIDTHS = [3, 5]

    def activation(x):
        return x.relu()

    class Block:
        def forward(self, x):
            return activation(x)
"""
MODEL = """
    import functools
    import math
    import blocks_of_mine
    from blocks_of_mine import WIDTHS

    RATE = 0.1
    UNUSED = 1

    @functools.lru_cache
    def scale():
        return RATE

    class Net:
        # a comment
        def __init__(self):
            self.blocks = [blocks_of_mine.Block() for _ in WIDTHS]

        def loss(self):
            return scale() * math.pi
"""


@pytest.fixture
def described(tmp_path, monkeypatch):
    """What is said of the class when its two files hold this."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def describe_files(*, model: str = MODEL, blocks: str = BLOCKS):
        for name, text in (("model_of_mine", model), ("blocks_of_mine", blocks)):
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
            monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        importlib.invalidate_caches()
        return describe(importlib.import_module("model_of_mine").Net)

    return describe_files


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("model", "RATE = 0.1", "RATE = 0.2"),
        ("model", "scale() * math.pi", "scale() + math.pi"),
        ("model", "return RATE", "return RATE + 1"),
        ("blocks", "[3, 5]", "[3, 7]"),
        ("blocks", "x.relu()", "x.tanh()"),
        ("blocks", "return activation(x)", "return -activation(x)"),
    ],
)
def test_whatever_a_class_uses_of_the_users_own_modules_counts(described, file, before, after):
    text = {"model": MODEL, "blocks": BLOCKS}[file]
    assert before in text
    assert described() != described(**{file: text.replace(before, after)})


def test_what_it_does_not_use_and_how_it_is_written_do_not(described):
    first = described()
    assert set(first["reads"]) == {
        "blocks_of_mine.Block", "blocks_of_mine.WIDTHS", "blocks_of_mine.activation", "model_of_mine.RATE",
        "model_of_mine.WIDTHS", "model_of_mine.scale",
    }  # fmt: skip
    assert described() == first
    assert described(model=MODEL.replace("UNUSED = 1", "UNUSED = 2").replace("a comment", "another")) == first


def test_functions_that_call_each_other_come_to_an_end(described):
    loop = "\n    def scale():\n        return other()\n\n    def other():\n        return scale()\n"
    text = MODEL.replace("class Net", loop.strip() + "\n\n    class Net")
    assert "model_of_mine.other" in described(model=text)["reads"]


def test_libraries_and_this_package_are_told_by_their_version():
    assert is_library("torch.nn.modules.activation")
    assert is_library("json")
    assert is_library("bn_lightning.analysis.study")
    assert not is_library("tiny")
    assert not is_library("__main__")
    assert "reads" not in describe(TinyNet)


def test_methods_of_bases_count_where_a_user_wrote_them():
    class Wider(TinyNet):
        def forward(self, x):
            return 2 * x

    names = [method.__qualname__.rpartition(".")[0] for method in own_methods(Wider)]
    assert "TinyNet" in names
    assert names[0].endswith("Wider")
    assert own_methods(dict) == []


def test_a_callback_of_the_users_own_is_told_by_what_its_methods_do():
    def make(code):
        class Callback:
            rate = 0.1

        Callback.on_train_start = code
        return describe(Callback())

    assert make(lambda self: 1) != make(lambda self: 2)
    assert code_digest((lambda: 1).__code__) == code_digest((lambda: 1).__code__)
    assert read_elsewhere([]) == {}
