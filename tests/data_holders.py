"""Everyday objects that hold data, each made from a number that decides what it holds and nothing else about it."""

import array
import collections
import datetime
import io
import operator
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchmetrics
from PIL import Image
from scipy import sparse
from torch import nn
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)


class Numbers(IterableDataset):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return iter([self.first])


def tensors(number: int) -> TensorDataset:
    return TensorDataset(torch.tensor([number, 1]))


def frame(values: list[Any], **options: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": values, "b": ["x", "y"]}, **options)


def changed(dataset: Any, **attributes: Any) -> Any:
    vars(dataset).update(attributes)
    return dataset


def image(number: int, mode: str) -> Image.Image:
    made = Image.new(mode, (2, 2))
    made.putpixel((0, 1), number)
    return made


def metric(number: int) -> torchmetrics.Metric:
    made = torchmetrics.MeanMetric()
    made.update(float(number))
    return made


def palette(number: int) -> Image.Image:
    made = Image.new("P", (2, 2))
    made.putpalette([number, 0, 0])
    return made


HOLDERS: dict[str, Callable[[int], Any]] = {
    "TensorDataset": tensors,
    "Subset": lambda n: Subset(tensors(1), [n]),
    "Subset of": lambda n: Subset(tensors(n), [0]),
    "ConcatDataset": lambda n: ConcatDataset([tensors(1), tensors(n)]),
    "StackDataset": lambda n: StackDataset(tensors(1), tensors(n)),
    "StackDataset by name": lambda n: StackDataset(x=tensors(1), y=tensors(n)),
    "ChainDataset": lambda n: ChainDataset([Numbers(1), Numbers(n)]),
    "Dataset, changed": lambda n: changed(Dataset(), targets=torch.tensor([n])),
    "DataLoader": lambda n: DataLoader(tensors(n)),
    "DataLoader, batch size": lambda n: DataLoader(tensors(1), batch_size=n),
    "DataLoader, sampler": lambda n: DataLoader(tensors(1), sampler=WeightedRandomSampler([1.0, n], 2)),
    "DataLoader, generator": lambda n: DataLoader(tensors(1), generator=torch.Generator().manual_seed(n)),
    "torch.Generator": lambda n: torch.Generator().manual_seed(n),
    "Generator": np.random.default_rng,
    "Generator, several seeds": lambda n: np.random.default_rng([n, 5]),
    "Generator, spawned": lambda n: np.random.default_rng(1).spawn(n)[-1],
    "Generator, other kind": lambda n: np.random.Generator((np.random.PCG64, np.random.MT19937)[n - 1](3)),
    "Generator, keyed": lambda n: np.random.Generator(np.random.Philox(key=n)),
    "BitGenerator": np.random.PCG64,
    "SeedSequence": np.random.SeedSequence,
    "RandomState": np.random.RandomState,
    "bound method of a Generator": lambda n: np.random.default_rng(n).normal,
    "bound method of a dict": lambda n: {"a": n}.get,
    "masked array": lambda n: np.ma.masked_equal([1, 2, 3], n),
    "structured array": lambda n: np.array([(n, 0.5)], dtype=[("a", int), ("b", float)]),
    "OrderedDict": lambda n: collections.OrderedDict(a=n),
    "defaultdict": lambda n: collections.defaultdict(int, a=n),
    "defaultdict, default": lambda n: collections.defaultdict((int, float)[n - 1], a=1),
    "Counter": lambda n: collections.Counter("ab" * n),
    "ChainMap": lambda n: collections.ChainMap({"a": 1}, {"b": n}),
    "deque": lambda n: collections.deque([n]),
    "deque, length": lambda n: collections.deque([1], maxlen=n),
    "UserDict": lambda n: collections.UserDict(a=n),
    "UserList": lambda n: collections.UserList([n]),
    "UserString": lambda n: collections.UserString(str(n)),
    "dict by functions": lambda n: {(torch.relu, torch.tanh)[n - 1]: 1, Numbers: 2},
    "array": lambda n: array.array("d", [n]),
    "array, type": lambda n: array.array(("d", "f")[n - 1], [0]),
    "bytearray": lambda n: bytearray([n]),
    "memoryview": lambda n: memoryview(bytes([n])),
    "memoryview, two axes": lambda n: memoryview(np.full((2, 2), n)),
    "BytesIO": lambda n: io.BytesIO(bytes([n])),
    "StringIO": lambda n: io.StringIO(str(n)),
    "itemgetter": operator.itemgetter,
    "attrgetter": lambda n: operator.attrgetter(f"a{n}"),
    "methodcaller": lambda n: operator.methodcaller("view", n),
    "UUID": lambda n: uuid.UUID(int=n),
    "date": lambda n: datetime.date(2020, 1, n),
    "datetime": lambda n: datetime.datetime(2020, 1, n, tzinfo=datetime.UTC),
    "timezone": lambda n: datetime.timezone(datetime.timedelta(hours=n)),
    "image": lambda n: image(n, "L"),
    "image, mode": lambda n: Image.new(("L", "P")[n - 1], (2, 2)),
    "image, size": lambda n: Image.new("L", (2 * n, 4 // n)),
    "image, palette": palette,
    "torchmetrics": lambda n: torchmetrics.classification.MulticlassAccuracy(num_classes=3, top_k=n),
    "torchmetrics, collection": lambda n: torchmetrics.MetricCollection(
        {"a": torchmetrics.FBetaScore("binary", beta=float(n))}
    ),
    "torchmetrics, state": metric,
    "ParameterList": lambda n: nn.ParameterList([torch.full((2,), float(n))]),
    "ParameterDict": lambda n: nn.ParameterDict({"a": torch.full((2,), float(n))}),
    "ParameterList, buffer": lambda n: nn.ParameterList([nn.Buffer(torch.tensor([n, 1.0]))]),
    **{
        f"{name}_{kind}": lambda n, name=name, kind=kind: getattr(sparse, f"{name}_{kind}")(np.diag([n, 1]))
        for name in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        for kind in ("array", "matrix")
    },
    "sparse, shape": lambda n: sparse.csr_array((2, n)),
    "sparse tensor": lambda n: torch.tensor([[0, n]]).to_sparse(),
    "DataFrame": lambda n: frame([n, 0]),
    "DataFrame, dtype": lambda n: frame([1, 2]).astype({"a": ("int32", "int64")[n - 1]}),
    "DataFrame, columns": lambda n: frame([1, 2]).rename(columns={"a": f"c{n}"}),
    "DataFrame, order": lambda n: frame([1, 2])[list(("ab", "ba")[n - 1])],
    "DataFrame, index": lambda n: frame([1, 2], index=[n, 5]),
    "DataFrame, two names alike": lambda n: pd.DataFrame([[1, n]], columns=["a", "a"]),
    "DataFrame, words": lambda n: frame(["u", f"v{n}"]),
    "DataFrame, words as objects": lambda n: frame(["u", f"v{n}"]).astype(object),
    "DataFrame, lists": lambda n: frame([[1], [n]]),
    "DataFrame, arrays": lambda n: frame([np.ones(2), np.array([n, 0])]),
    "DataFrame, paths and objects": lambda n: frame([Numbers(n), {"k"}]),
    "DataFrame, number or word": lambda n: frame([(1, "1")[n - 1], "u"]).astype(object),
    "DataFrame, categories": lambda n: frame([1, 2]).astype({"b": pd.CategoricalDtype(("x", "y", f"z{n}"))}),
    "DataFrame, category": lambda n: pd.DataFrame({"a": pd.Categorical([f"x{n}"], ["x1", "x2"])}),
    "DataFrame, ordered": lambda n: frame([1, 2]).astype({"b": pd.CategoricalDtype(("x", "y"), ordered=n > 1)}),
    "DataFrame, several levels": lambda n: frame([1, 2]).set_index([pd.Index([1, n]), pd.Index(["u", "v"])]),
    "DataFrame, columns of several levels": lambda n: pd.DataFrame([[1, 2]], columns=[["a", "a"], ["u", f"v{n}"]]),
    "DataFrame, nullable": lambda n: frame([n, None]).astype({"a": "Int64"}),
    "DataFrame, empty": lambda n: pd.DataFrame(columns=["a"] * n),
    "Series": lambda n: pd.Series([1.0, n]),
    "Series, name": lambda n: pd.Series([1.0], name=f"a{n}"),
    "Series, index": lambda n: pd.Series([1.0], index=[f"a{n}"]),
    "Index": lambda n: pd.Index([n]),
    "Index, words": lambda n: pd.Index([f"a{n}"]),
    "RangeIndex": pd.RangeIndex,
    "DatetimeIndex": lambda n: pd.date_range(f"2020-01-0{n}", periods=2),
    "MultiIndex": lambda n: pd.MultiIndex.from_product([["a"], [n, 5]], names=["u", "v"]),
    "Categorical": lambda n: pd.Categorical(["a", f"b{n}"]),
    "pandas array": lambda n: pd.array([n, None], dtype="Int64"),
    "CategoricalDtype": lambda n: pd.CategoricalDtype(["a", f"b{n}"]),
    "Interval": lambda n: pd.Interval(0, n),
    "Timestamp": lambda n: pd.Timestamp(2020, 1, n),
    "Period": lambda n: pd.Period(f"2020-0{n}"),
}  # fmt: skip
