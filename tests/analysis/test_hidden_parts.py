import sys
import zoneinfo

import pandas as pd
import pytest
from scipy import sparse
from tiny import TinyNet

from bn_lightning.analysis.description import describe
from bn_lightning.analysis.hidden_parts import way_into


@pytest.mark.parametrize("value", [1, "a", [1], {"a": 1}, (), {1}, None, TinyNet, open])
def test_what_shows_itself_needs_no_other_way(value):
    assert way_into(value) is None


@pytest.mark.parametrize("module", [None, sys])
def test_libraries_that_are_not_loaded_or_lack_the_kind_are_passed_over(monkeypatch, module):
    frame = pd.DataFrame()
    assert way_into(frame)
    monkeypatch.setitem(sys.modules, "pandas", module)
    assert way_into(frame) is None


def test_a_sparse_matrix_is_told_alike_before_and_after_its_use():
    matrix = sparse.csr_array(([1.0, 2.0], [1, 0], [0, 2]), shape=(1, 2))
    told, parts = describe(matrix), [str(part) for part in way_into(matrix)(matrix)]
    assert parts == ["(1, 2)", "[0 0]", "[1 0]", "[1. 2.]"]
    assert not matrix.has_sorted_indices  # which is kept, as an attribute of its own
    assert describe(matrix) == told


@pytest.mark.skipif("Asia/Tokyo" not in zoneinfo.available_timezones(), reason="no time zones are installed")
def test_time_zones_are_told_apart():
    tokyo, paris = (describe([zoneinfo.ZoneInfo(name)]) for name in ("Asia/Tokyo", "Europe/Paris"))
    assert tokyo != paris
