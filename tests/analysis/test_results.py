import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_lightning.analysis.results import (
    CELL_COLUMNS,
    RESULT_COLUMNS,
    load_cells,
    load_results,
    results_table,
    write_table,
    write_text,
)
from bn_lightning.errors import RunFolderError


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(width=64), min_size=1, max_size=8))
def test_values_come_back_to_the_bit(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    rows = [("s", "none", 3, step, "" if step % 2 else "net.0", "NA", value) for step, value in enumerate(values)]
    write_table(folder / "results.csv", results_table(rows))
    pd.testing.assert_frame_equal(load_results(folder), results_table(rows), check_exact=True)


def test_the_columns_are_those_of_the_contract(tmp_path):
    write_table(tmp_path / "results.csv", results_table([("s", "none", 0, 0, "", "loss", math.nan)]))
    assert (tmp_path / "results.csv").read_text() == "study,arm,seed,step,layer,quantity,value\ns,none,0,0,,loss,\n"


def test_an_empty_table_has_the_same_types_as_a_full_one(tmp_path):
    full = results_table([("s", "a", 0, 0, "", "q", 1.0)])
    assert results_table([]).dtypes.equals(full.dtypes)
    write_table(tmp_path / "results.csv", results_table([]))
    assert list(load_results(tmp_path).columns) == list(RESULT_COLUMNS)


def test_cells_keep_an_arm_called_none(tmp_path):
    row = dict.fromkeys(CELL_COLUMNS, "none") | {"seed": 0, "seconds": 1.5, "label": None}
    write_table(tmp_path / "cells.csv", pd.DataFrame([row]))
    read = load_cells(tmp_path).iloc[0]
    assert (read["arm"], read["label"], read["seconds"]) == ("none", "", 1.5)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"There is no results\.csv in"):
        load_results(tmp_path)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "results.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(RunFolderError, match=r"results\.csv cannot be read as a table"):
        load_results(tmp_path)


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "results.csv").write_text("study,arm\na,b\n")
    with pytest.raises(RunFolderError, match="lacks the columns seed, step, layer, quantity, value"):
        load_results(tmp_path)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    (tmp_path / "results.csv").write_text(",".join(RESULT_COLUMNS) + "\ns,a,0,0,,loss,low\n")
    with pytest.raises(RunFolderError, match="holds values that are no results"):
        load_results(tmp_path)


def test_a_full_disk_is_named_with_the_file_and_the_way_out(tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files, as a full disk does")
    write_text(tmp_path / "results.csv", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunFolderError, match=r"results\.csv cannot be written: File too large.*make room"):
            write_text(tmp_path / "results.csv", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "results.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "results.csv"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("name", ["1e-1", "01", "0.10", "NA", "none", "True"])
def test_names_that_look_like_numbers_stay_names(tmp_path, name):
    table = results_table([(name, name, 0, 0, name, name, 1.0)])
    write_table(tmp_path / "results.csv", table)
    pd.testing.assert_frame_equal(load_results(tmp_path), table)
