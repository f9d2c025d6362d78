import warnings

import numpy as np
import pandas as pd
import pytest

from bn_lightning.analysis.pandas_parts import pandas_parts
from bn_lightning.analysis.value_digest import value_digest


class Label:
    def __init__(self, text: str) -> None:
        self.text = text


@pytest.mark.parametrize("other", [0, {"k": [1]}])
def test_objects_in_a_column_are_told_by_what_they_hold_and_not_where_they_are(other):
    made = [pd.DataFrame({"a": [Label(text), other]}) for text in "uuv"]
    told = [value_digest(frame) for frame in made]
    assert told[0] == told[1] != told[2]


def test_names_index_and_values_are_the_parts():
    frame = pd.DataFrame({"a": [1, 2], "b": [[1], 2]}, index=["x", "y"])
    columns, index, values = pandas_parts(frame)
    assert list(columns) == ["a", "b"]
    assert list(index) == ["x", "y"]
    np.testing.assert_array_equal(values[0][1], pd.util.hash_array(np.array([1, 2])))
    assert values[1] == ("object", [[1], 2])


def test_lists_of_arrow_are_told_by_their_entries():
    arrow = pytest.importorskip("pyarrow")
    made = [pd.Series([[1], [number]], dtype=pd.ArrowDtype(arrow.list_(arrow.int64()))) for number in (1, 1, 2)]
    told = [value_digest(series) for series in made]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("layout", [lambda frame: frame.copy(), lambda frame: frame[["b", "a"]][["a", "b"]]])
def test_how_a_frame_lies_in_memory_does_not_count(layout):
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value_digest(layout(frame)) == value_digest(frame)
