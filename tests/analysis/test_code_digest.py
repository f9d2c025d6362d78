import importlib
import textwrap

import pytest
from tiny import TinyNet

from bn_lightning.analysis.code_digest import code_digest, own_bases, read_elsewhere
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


def test_what_libraries_hold_is_not_read():
    assert "reads" not in describe(TinyNet)


def test_methods_of_bases_count_where_a_user_wrote_them():
    class Wider(TinyNet):
        def forward(self, x):
            return 2 * x

    assert own_bases(Wider) == [Wider, TinyNet]
    assert own_bases(dict) == []


def test_a_callback_of_the_users_own_is_told_by_what_its_methods_do():
    def make(code):
        class Callback:
            rate = 0.1

        Callback.on_train_start = code
        return describe(Callback())

    assert make(lambda self: 1) != make(lambda self: 2)
    assert code_digest((lambda: 1).__code__) == code_digest((lambda: 1).__code__)
    assert read_elsewhere([]) == {}


WRAPPED = """
    import functools
    def loud(f):
        @functools.wraps(f)
        def g(*args):
            return f(*args)
        return g
    class Net:
        @loud
        def forward(self): return 0.1
"""


@pytest.mark.parametrize(
    "model",
    [
        "class Net:\n    lr = 0.1",
        "class Net:\n    layers = {'widths': [0.1]}",
        "class Net:\n    @property\n    def lr(self): return 0.1",
        "import functools\nclass Net:\n    @functools.cached_property\n    def lr(self): return 0.1",
        "import functools\nclass Net:\n    @functools.lru_cache\n    def lr(self): return 0.1",
        "import torch\nclass Net:\n    @torch.no_grad()\n    def forward(self): return 0.1",
        WRAPPED,
        "class Net:\n    def __init__(self, lr=0.1): pass",
        "class Base:\n    def __init__(self, *, lr=0.1): pass\nclass Net(Base): pass",
        "def f(lr=0.1): return lr\nclass Net:\n    def lr(self): return f()",
        "class Help:\n    lr = 0.1\nclass Net:\n    def lr(self): return Help.lr",
        "from torch.nn import Dropout as X\nclass Net:\n    def act(self): return X()",
        "from torch.nn.functional import dropout as X\nclass Net:\n    def act(self): return X()",
        "from torch import nn\nX = {'a': nn.Dropout}\nclass Net:\n    def act(self): return X['a']()",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    lr: float\nX = C(0.1)\n"
        "class Net:\n    def lr(self): return X.lr",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    lr: float = 0.1\n"
        "class Net:\n    def lr(self): return C().lr",
        "from enum import Enum\nclass C(Enum):\n    LR = 0.1\nclass Net:\n    def lr(self): return C.LR",
        "from types import SimpleNamespace\nX = SimpleNamespace(lr=0.1)\nclass Net:\n    def lr(self): return X.lr",
        "from functools import partial\nX = partial(dict, lr=0.1)\nclass Net:\n    def lr(self): return X()",
        "import torch\nX = torch.tensor(0.1, dtype=torch.bfloat16)\nclass Net:\n    def lr(self): return X",
        "X = {0.1, 'a'}\nclass Net:\n    def lr(self): return X",
    ],
)
def test_whatever_a_class_holds_or_names_counts(described, model):
    first, other = described(model=model), described(model=model.replace("0.1", "0.2").replace("ropout", "ropout1d"))
    assert first != other
    assert described(model=model) == first
