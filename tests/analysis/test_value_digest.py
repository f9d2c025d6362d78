import functools

import pytest
from files_of_mine import describe_net

from bn_lightning.analysis.description import describe


@pytest.fixture
def described(tmp_path, monkeypatch):
    return functools.partial(describe_net, tmp_path, monkeypatch)


def test_a_callback_of_the_users_own_is_told_by_what_its_methods_do():
    def make(code):
        class Callback:
            rate = 0.1

        Callback.on_train_start = code
        return describe(Callback())

    assert make(lambda self: 1) != make(lambda self: 2)


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
    first, other = (
        described(model_of_mine=model),
        described(model_of_mine=model.replace("0.1", "0.2").replace("ropout", "ropout1d")),
    )
    assert first != other
    assert described(model_of_mine=model) == first
