import functools

import pytest
from files_of_mine import describe_net
from tiny import TinyNet

from bn_lightning.analysis.description import describe
from bn_lightning.analysis.read_elsewhere import read_elsewhere

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
    return functools.partial(describe_net, tmp_path, monkeypatch)


def net(described, *, model=MODEL, blocks=BLOCKS):
    return described(blocks_of_mine=blocks, model_of_mine=model)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("model", "RATE = 0.1", "RATE = 0.2"),
        ("model", "scale() * math.pi", "scale() + math.pi"),
        ("model", "return RATE", "return RATE + 1"),
        ("blocks", "[3, 5]", "[3, 7]"),
        ("blocks", "x.relu()", "x.tanh()"),
        ("blocks", "return activation(x)", "return -activation(x)"),
        ("model", "import math", "import cmath as math"),
    ],
)
def test_whatever_a_class_uses_of_the_users_own_modules_counts(described, file, before, after):
    text = {"model": MODEL, "blocks": BLOCKS}[file]
    assert before in text
    assert net(described) != net(described, **{file: text.replace(before, after)})


def test_what_it_does_not_use_and_how_it_is_written_do_not(described):
    first = net(described)
    assert set(first["reads"]) == {
        "blocks_of_mine.Block", "blocks_of_mine.WIDTHS", "blocks_of_mine.activation", "model_of_mine.RATE",
        "model_of_mine.WIDTHS", "model_of_mine.math", "model_of_mine.scale",
    }  # fmt: skip
    assert net(described) == first
    assert net(described, model=MODEL.replace("UNUSED = 1", "UNUSED = 2").replace("a comment", "another")) == first


def test_functions_that_call_each_other_come_to_an_end(described):
    loop = "\n    def scale():\n        return other()\n\n    def other():\n        return scale()\n"
    text = MODEL.replace("class Net", loop.strip() + "\n\n    class Net")
    assert "model_of_mine.other" in net(described, model=text)["reads"]


def test_of_libraries_only_the_names_are_read():
    read = describe(TinyNet)["reads"]
    assert read["tiny.torch"] == "torch"
    assert {name.partition(".")[0] for name in read} == {"tiny"}


@pytest.mark.parametrize("rate", ["RATE = 0.1", "import math as RATE"])
def test_modules_of_packages_of_the_users_own_are_read(described, rate):
    texts = {"inner_of_mine": rate, "outer_of_mine": "import inner_of_mine\nimport outer_of_mine"}
    model = "import outer_of_mine\nclass Net:\n    def lr(self): return outer_of_mine.inner_of_mine.RATE"
    first = described(**texts, model_of_mine=model)
    texts["inner_of_mine"] = "RATE = 0.2"
    assert described(**texts, model_of_mine=model) != first


LATE = ("from late_of_mine import RATE", "import late_of_mine\n        RATE = late_of_mine.RATE")


@pytest.mark.parametrize("line", LATE)
def test_what_a_function_imports_itself_is_read(described, line):
    model = f"""
    class Net:
        def lr(self):
            {line}
            import json, no_such_module_of_mine
            return lambda: json.dumps(RATE)
    """.replace("\n        RATE", "\n            RATE")
    first = described(late_of_mine="RATE = 0.1", model_of_mine=model)
    assert set(first["reads"]) == {"late_of_mine.RATE"}
    assert described(late_of_mine="RATE = 0.1  # the same", model_of_mine=model) == first
    assert described(late_of_mine="RATE = 0.2", model_of_mine=model) != first


def test_what_a_function_imports_from_its_own_package_is_read(described, tmp_path):
    package = tmp_path / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(
        "class Net:\n    def lr(self):\n        from . import rates\n        return rates.RATE\n"
    )
    found = []
    for rate in (0.1, 0.2):
        (package / "rates.py").write_text(f"RATE = {rate}\n")
        found.append(described(model_of_mine="from package_of_mine.net import Net")["reads"])
    assert [set(reads) for reads in found] == [{"package_of_mine.rates.RATE"}] * 2
    assert found[0] != found[1]


def test_no_functions_read_nothing():
    assert read_elsewhere([]) == {}
