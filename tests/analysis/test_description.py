import functools
import json
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from data_holders import HOLDERS
from tiny import TinyNet
from torch import nn
from torch.utils.data import Subset, TensorDataset

from bn_lightning.analysis.description import describe
from bn_lightning.schedule import Schedule


def test_functions_differ_by_code_constants_defaults_and_what_they_captured():
    def make(captured: float) -> Any:
        return lambda: captured

    functions = [lambda: 1, lambda: 2, lambda x=1: x, lambda x=2: x, lambda *, x=1: x, make(1.0), make(2.0)]
    functions += [lambda: abs(1), lambda: len(()), lambda: lambda: 1, lambda: lambda: 2]
    described = [json.dumps({**describe(function), "call": ""}) for function in functions]
    assert len(set(described)) == len(functions)


def test_objects_are_told_by_class_and_plain_attributes_without_addresses():
    class Thing:
        def __init__(self) -> None:
            self.tensor, self.rate, self.schedule, self.kind = torch.ones(2), 0.5, Schedule(5), dict

    said = describe(Thing())
    assert said["attributes"]["rate"] == 0.5
    assert said["attributes"]["schedule"]["attributes"]["every_n_steps"] == 5
    assert said["attributes"]["kind"] == "builtins.dict"
    assert said["attributes"]["tensor"]["shape"] == [2]
    assert "0x" not in json.dumps(said)


def test_what_refers_to_itself_comes_to_an_end():
    def loop() -> Any:
        return loop

    assert json.dumps(describe(loop))


def test_sets_are_described_in_one_order():
    assert describe({"b", "a"}) == ["a", "b"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Path("a"), Path("b")),
        (np.int64(1), np.int64(2)),
        (np.ones(2), np.zeros(2)),
        (torch.ones(2), torch.zeros(2)),
        (torch.float32, torch.float64),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_plain_are_told_apart(one, other):
    assert describe({"x": one}) != describe({"x": other})
    json.dumps(describe({"x": one}))


def test_a_class_of_the_users_own_is_told_by_what_its_methods_do():
    def make(number: int) -> type:
        class Net(nn.Module):
            def forward(self, x):
                return x + number

        class Other(nn.Module):
            def forward(self, x):
                return x - number

        Other.__qualname__, Other.__name__ = Net.__qualname__, Net.__name__
        return Net if number else Other

    assert describe(make(1)) != describe(make(0))
    assert describe(nn.ReLU) == "torch.nn.modules.activation.ReLU"


def test_a_bound_method_is_told_by_its_object():
    class Maker:
        def __init__(self, lr: float) -> None:
            self.lr = lr

        def make(self) -> float:
            return self.lr

    assert describe(Maker(0.1).make) != describe(Maker(0.2).make)


class Noise:
    def __init__(self, strength: Any) -> None:
        self.strength = strength


class Slotted:
    __slots__ = ("strength",)

    def __init__(self, strength: Any) -> None:
        self.strength = strength


class Act(nn.Module):
    def __init__(self, strength: Any) -> None:
        super().__init__()
        self.strength = strength


@pytest.mark.parametrize(
    "make",
    [
        Noise,
        Slotted,
        Act,
        lambda value: Noise([Noise(value)]),
        lambda value: nn.Sequential(Act(value)),
        lambda value: TensorDataset(torch.tensor([value])),
        lambda value: Subset([Noise(value)], [0]),
        lambda value: nn.CrossEntropyLoss(weight=torch.tensor([value, 1.0])),
        lambda value: {"a": {"b": {"c": {"d": {"e": {"f": {"g": value}}}}}}},
        lambda value: lambda: Noise([value]),
        lambda value: functools.lru_cache(lambda: value),
        lambda value: np.array([value, None], dtype=object),
        lambda value: torch.tensor(value, dtype=torch.bfloat16),
    ],
)
def test_what_objects_in_arguments_hold_counts(make):
    first, other = (json.dumps(describe(functools.partial(TinyNet, part=make(value)))) for value in (0.1, 0.2))
    assert first != other
    assert json.dumps(describe(functools.partial(TinyNet, part=make(0.1)))) == first
    assert " at 0x" not in first


def test_weights_that_are_drawn_and_where_folders_lie_do_not_count():
    assert describe(nn.Linear(3, 2)) == describe(nn.Linear(3, 2))
    assert describe(nn.Linear(3, 2)) != describe(nn.Linear(3, 2).requires_grad_(False))
    assert describe(Noise([Noise(Path("/a/data"))])) == describe(Noise([Noise(Path("/b/data"))]))


def test_odd_objects_are_told_and_never_raise():
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        def __repr__(self) -> str:
            raise RuntimeError

    class Unready(nn.Module):
        def extra_repr(self) -> str:
            raise RuntimeError

    loop: list[Any] = []
    loop.append(Noise(loop))
    loop[0].other = [loop, loop[0]]
    odd = [Odd(), Unready(), loop, Noise(Odd()), iter([]), weakref.proxy(Noise(1)), nn.LazyLinear(2), Mock(), TinyNet()]
    for value in [*odd, torch.empty(2, device="meta"), open, torch.Generator(), logging.getLogger(), os.environ.copy]:
        assert " at 0x" not in json.dumps(describe({"part": value, "deep": Noise([value])}))


def test_the_digest_of_what_objects_hold_is_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import enum, functools, logging, torch\nfrom torch import nn\nfrom types import SimpleNamespace\n"
        "LOG = logging.getLogger()\nSTATE = SimpleNamespace(words={'p', 'q', 'r'}, kinds={nn.ReLU, nn.Tanh, int})\n"
        "class Kind(enum.Flag):\n    A = 1\n    B = 2\n"
        "class Act(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = nn.Linear(2, 2)\n"
        "    @torch.no_grad()\n    def forward(self, x): return STATE, LOG, Kind.A, x in {'a', 'b'}\n"
    )
    code = (
        "from bn_lightning.analysis.description import describe; import functools, json, mine\n"
        "print(json.dumps(describe(functools.partial(dict, act=mine.Act(), other=[mine.Act, {mine.Kind.B}]))))"
    )
    printed = set()
    for seed in ("1", "2"):
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1


def placed(value: Any) -> dict[str, str]:
    """What is said of a value in the places where configurations hold it."""
    places = {
        "itself": value,
        "argument": functools.partial(TinyNet, part=value),
        "attribute": Noise(value),
        "captured": lambda: value,
        "deep": [[[[[[[value]]]]]]],
    }
    return {place: json.dumps(describe(holder)) for place, holder in places.items()}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_libraries_objects_hold_counts_wherever_they_are(name):
    first, other = placed(HOLDERS[name](1)), placed(HOLDERS[name](2))
    assert not [place for place in first if first[place] == other[place]]
    assert placed(HOLDERS[name](1)) == first
    assert " at 0x" not in json.dumps(first)


@pytest.fixture(scope="module")
def told_in_two_processes() -> list[dict[str, Any]]:
    code = (
        "from bn_lightning.analysis.description import describe; from data_holders import HOLDERS; import json\n"
        "print(json.dumps({n: [describe(make(1)), describe([[[[[[[make(1)]]]]]]])] for n, make in HOLDERS.items()}))"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    told = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        told.append(json.loads(done.stdout))
    return told


@pytest.mark.parametrize("name", HOLDERS)
def test_what_they_hold_is_told_alike_in_every_process(told_in_two_processes, name):
    first, other = told_in_two_processes
    assert first[name] == other[name]


def test_collections_of_the_users_own_are_told_with_what_they_do_and_keep():
    def make(number: int, rate: float) -> Any:
        class Settings(dict):
            def rate(self) -> float:
                return number

        made = Settings(a=1)
        made.extra = rate
        return made

    assert describe(make(1, 0.1))["holds"] == {"a": 1}
    assert len({json.dumps(describe(made)) for made in (make(1, 0.1), make(2, 0.1), make(1, 0.2))}) == 3
    assert describe(make(1, 0.1)) == describe(make(1, 0.1))


# torch warns of itself as it loads its compiler.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_what_torch_compile_wraps_is_told_without_its_address():
    one, other = torch.compile(nn.Linear(2, 3)), torch.compile(nn.Linear(2, 3))
    assert one._torchdynamo_wrapper_id != other._torchdynamo_wrapper_id
    assert describe(one) == describe(other) != describe(torch.compile(nn.Linear(2, 3, bias=False)))
