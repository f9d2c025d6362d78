import json

import pytest
from tiny import tiny_problem, tiny_study

from bn_lightning.analysis.results import load_results, results_table, write_table
from bn_lightning.analysis.run_folder import RunFolder
from bn_lightning.errors import RunFolderError

KEY = ("slow", 0)


def test_a_folder_is_claimed_once_and_again_by_the_same_study(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(tiny_study(), extra={"note": 1})
    folder.claim(tiny_study(), extra={"note": 2})
    assert folder.owner() == {"study": "rates", "problem": "tiny", "question": "Which rate?", "note": 2}


@pytest.mark.parametrize("other", [{"name": "placement"}, {"problem": tiny_problem(name="mnist")}])
def test_a_folder_of_another_study_or_problem_is_refused(tmp_path, other):
    RunFolder(tmp_path).claim(tiny_study())
    with pytest.raises(RunFolderError, match=r"belongs to the study 'rates' on the problem 'tiny'; asked was .*--out"):
        RunFolder(tmp_path).claim(tiny_study(**other))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds files but no study\.json"):
        RunFolder(tmp_path).claim(tiny_study())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunFolder(tmp_path / "file").claim(tiny_study())


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "is not a study's")])
def test_a_broken_study_file_is_named(tmp_path, text, message):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path).owner()


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_cell_without_a_readable_record_was_not_begun(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.begin(KEY, {})
    (folder.cell(KEY) / "cell.json").write_text(text) if text else (folder.cell(KEY) / "cell.json").unlink()
    assert folder.record(KEY) == {}


def test_only_a_done_cell_of_this_configuration_with_results_is_finished(tmp_path):
    folder = RunFolder(tmp_path)
    record = {"status": "done", "configuration_hash": "abc"}
    path = folder.begin(KEY, record)
    assert not folder.is_finished(KEY, "abc")
    write_table(path / "results.csv", results_table([]))
    assert folder.is_finished(KEY, "abc")
    assert not folder.is_finished(KEY, "abd")
    (path / "cell.json").write_text(json.dumps({**record, "status": "running"}))
    assert not folder.is_finished(KEY, "abc")


def test_beginning_a_cell_takes_its_old_logs_away(tmp_path):
    folder = RunFolder(tmp_path)
    (folder.begin(KEY, {}) / "events.out.tfevents.1").write_text("old")
    assert [path.name for path in folder.begin(KEY, {"status": "running"}).iterdir()] == ["cell.json"]


def test_gathering_takes_results_of_done_cells_and_a_row_of_every_begun_one(tmp_path):
    folder = RunFolder(tmp_path)
    done = {"status": "done", "seconds": 2.0, "factors": {"lr": 1.0}, "label": "trained", "configuration_hash": "x"}
    path = folder.begin(KEY, done)
    write_table(path / "results.csv", results_table([("rates", "slow", 0, 5, "", "val_loss", 0.25)]))
    failed = {"status": "failed", "configuration_hash": "y"}
    write_table(folder.begin(("quick", 0), failed) / "results.csv", results_table([]))
    results, cells = folder.gather(tiny_study(), {KEY: "x", ("quick", 0): "y", ("quick", 1): "y"})
    assert results["value"].tolist() == [0.25]
    assert cells[["arm", "seed", "status"]].to_numpy().tolist() == [["slow", 0, "done"], ["quick", 0, "failed"]]
    assert cells["factors"].tolist() == ['{"lr": 1.0}', "{}"]
    assert (tmp_path / "results.csv").is_file()
    assert (tmp_path / "cells.csv").is_file()


@pytest.mark.parametrize("status", ["done", "failed", "running"])
def test_cells_of_another_configuration_are_outdated_and_their_results_stay_on_disk_alone(tmp_path, status):
    folder = RunFolder(tmp_path)
    rows = [("rates", *KEY, 5, "", "val_loss", 0.25)]
    path = folder.begin(KEY, {"status": status, "configuration_hash": "old"})
    write_table(path / "results.csv", results_table(rows))
    results, cells = folder.gather(tiny_study(), {KEY: "new"})
    assert len(results) == len(load_results(tmp_path)) == 0
    assert cells[["status", "configuration_hash"]].to_numpy().tolist() == [["outdated", "old"]]
    assert len(load_results(path)) == 1


def test_results_that_were_cut_off_are_trained_again(tmp_path):
    folder = RunFolder(tmp_path)
    path = folder.begin(KEY, {"status": "done", "configuration_hash": "abc", "rows": 2})
    rows = [("rates", *KEY, step, "", "loss", 0.5) for step in (0, 1)]
    write_table(path / "results.csv", results_table(rows))
    assert folder.is_finished(KEY, "abc")
    whole = (path / "results.csv").read_text()
    for cut in (whole[:-5], whole.rsplit("\n", 2)[0] + "\n", ""):
        (path / "results.csv").write_text(cut)
        assert not folder.is_finished(KEY, "abc")
        results, cells = folder.gather(tiny_study(), {KEY: "abc"})
        assert len(results) == 0
        assert len(cells) == 1
