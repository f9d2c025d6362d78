import errno
import os

import pandas as pd
import pytest

from bn_lightning.callbacks._activation_monitor.table import (
    COLUMNS,
    ActivationTable,
    checked_table_format,
    unwritable,
    write_table,
    write_tables,
)


def table(*steps):
    rows = ActivationTable()
    for step in steps:
        rows.add(step, "net.0", "a_mean", step + 0.5)
        rows.add(step, "NA", "a_var", float("nan"))
    return rows


def test_rows_come_back_in_order_and_more_can_follow():
    rows = table(3)
    first = rows.frame()
    assert tuple(first.columns) == COLUMNS
    assert first["layer"].tolist() == ["net.0", "NA"]
    assert first["quantity"].tolist() == ["a_mean", "a_var"]
    assert first["value"].iloc[0] == 3.5
    rows.add(4, "net.0", "a_mean", 1.0)
    assert len(rows.frame()) == 3
    assert len(first) == 2


def test_an_empty_table_has_its_columns_and_types():
    assert ActivationTable().frame().dtypes.astype(str).to_dict()["step"] == "int64"


def test_a_file_keeps_the_rows_of_steps_before(tmp_path):
    write_table(table(0, 1, 2).frame(), tmp_path / "new" / "a.csv")
    write_table(table(2, 3).frame(), tmp_path / "new" / "a.csv")
    found = pd.read_csv(tmp_path / "new" / "a.csv", keep_default_na=False, na_values={"value": [""]})
    pd.testing.assert_frame_equal(found, table(0, 1, 2, 3).frame(), check_dtype=False)


def test_a_full_disk_leaves_no_part_of_a_file_and_does_not_keep_other_folders_from_theirs(tmp_path, monkeypatch):
    write_table(table(0).frame(), tmp_path / "full" / "a.csv")
    before = (tmp_path / "full" / "a.csv").read_bytes()
    to_csv = pd.DataFrame.to_csv

    def failing(frame, path, **options):
        to_csv(frame, path, **options)
        if path.parent.name == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pd.DataFrame, "to_csv", failing)
    (refused,) = write_tables(table(0, 1).frame(), [tmp_path / "full", tmp_path / "good"], "a.csv")
    assert "No space left" in refused
    assert os.listdir(tmp_path / "full") == ["a.csv"]
    assert (tmp_path / "full" / "a.csv").read_bytes() == before
    assert len(pd.read_csv(tmp_path / "good" / "a.csv")) == 4


def test_another_table_under_that_name_is_left_alone(tmp_path):
    (tmp_path / "a.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="has the columns epoch, loss, not step, layer"):
        write_table(table(0).frame(), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "epoch,loss\n0,1\n"


def test_what_cannot_be_written_is_seen_beforehand_without_touching_anything(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    folders = [tmp_path / "new" / "run", tmp_path / "file" / "run", tmp_path / "dangling"]
    assert [text.split(": ")[0] for text in unwritable(folders)] == [str(folder) for folder in folders[1:]]
    assert not (tmp_path / "new").exists()
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (reason,) = unwritable(folders[:1])
    assert "no permission to write in" in reason


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="no table_format 'feather'"):
        checked_table_format("feather")


def test_parquet_needs_a_writer(monkeypatch):
    monkeypatch.setattr("bn_lightning.callbacks._activation_monitor.table.find_spec", lambda name: None)
    assert checked_table_format("csv") == "csv"
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        checked_table_format("parquet")


def test_parquet_keeps_rows_and_types(tmp_path):
    pytest.importorskip("pyarrow")
    assert checked_table_format("parquet") == "parquet"
    write_table(table(0, 1).frame(), tmp_path / "a.parquet")
    write_table(table(1, 2).frame(), tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), table(0, 1, 2).frame())
