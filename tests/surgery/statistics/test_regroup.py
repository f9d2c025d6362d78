"""Merged batches hold every sample once, in order, in the form they came in."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bn_lightning.surgery.statistics.regroup import regrouped, samples_of

Named = namedtuple("Named", "x y")


@dataclass(frozen=True)
class Data:
    x: torch.Tensor
    scale: float = 2.0
    note: None = None


@given(sizes=st.lists(st.integers(0, 9), max_size=12), most=st.integers(1, 20))
def test_no_sample_is_lost_and_no_group_too_large(sizes, most):
    values = torch.arange(sum(sizes))
    batches = list(values.split(sizes)) if sizes else []
    groups = list(regrouped(batches, most))
    assert all(len(group) <= max(most, *sizes) for group in groups)
    assert torch.equal(torch.cat([values[:0], *groups]), values)
    starts = [sum(len(group) for group in groups[:number]) for number in range(1, len(groups))]
    first_of_next = [_size_at(sizes, start) for start in starts]
    # A group ends only where the next batch would not have fitted.
    assert all(len(group) + size > most for group, size in zip(groups, first_of_next, strict=False))


def _size_at(sizes, start):
    """The size of the first batch with samples that begins at this sample."""
    begin = 0
    for size in sizes:
        if begin == start and size:
            return size
        begin += size
    return math.inf


def test_batches_that_fit_are_merged_and_large_ones_are_not_copied():
    large = torch.ones(9)
    groups = list(regrouped([torch.ones(2), torch.ones(2), torch.ones(1), large, torch.ones(3)], 4))
    assert [len(group) for group in groups] == [4, 1, 9, 3]
    assert groups[2] is large


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x[:, 0]),
        lambda x: [x, [x, x]],
        lambda x: Named(x, x[:, 0]),
        lambda x: {"x": x, "flag": True, "none": None},
        lambda x: OrderedDict(x=x),
        lambda x: Data(x),
        lambda x: (x, Data(x, 3.0)),
        lambda x: (x, ["name"] * len(x)),
    ],
    ids=["tuple", "nested list", "named tuple", "mapping", "ordered", "dataclass", "nested dataclass", "names"],
)
def test_every_form_comes_out_as_it_went_in(make):
    parts = [torch.randn(2, 3), torch.randn(1, 3)]
    (merged,) = regrouped([make(part) for part in parts], 8)
    expected = make(torch.cat(parts))
    assert type(merged) is type(expected) or isinstance(expected, OrderedDict)
    assert repr(dict(merged) if isinstance(merged, dict) else merged) == repr(
        dict(expected) if isinstance(expected, dict) else expected
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2), torch.ones(2).double()),
        ((torch.ones(2), 1), (torch.ones(2), 2)),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        ((torch.ones(2),), [torch.ones(2)]),
        ((torch.ones(2), None), (torch.ones(2), torch.ones(2))),
    ],
    ids=["shape", "type", "setting", "keys", "kind", "missing part"],
)
def test_what_does_not_fit_together_stays_apart(one, other):
    groups = list(regrouped([one, other], 8))
    assert groups[0] is one
    assert groups[1] is other


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((), "no tensors"),
        (["a"], "no tensors"),
        ((torch.ones(2, 3), torch.ones(4)), r"\(2, 3\), \(4,\)"),
        (torch.ones(()), r"\(\)"),
    ],
    ids=["empty", "names alone", "lengths differ", "scalar"],
)
def test_batches_without_one_number_of_samples_are_refused(batch, words):
    with pytest.raises(TypeError, match=f"cannot be merged: one holds {words}.*number of samples.*regroup="):
        list(regrouped([batch], 8))
    with pytest.raises(TypeError, match="number of samples"):
        samples_of(batch)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="batch with a ndarray in it cannot be merged"):
        list(regrouped([(torch.ones(2), np.ones(2))], 8))


def test_batches_are_read_one_by_one():
    def endless():
        while True:
            yield torch.ones(2)

    groups = regrouped(endless(), 5)
    assert [len(next(groups)) for _ in range(3)] == [4, 4, 4]
