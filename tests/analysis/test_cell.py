import errno
import json
import signal

import pytest
from tiny import Failing, tiny_problem

from bn_lightning.analysis.cell import Cell, run_cell
from bn_lightning.analysis.results import read_results
from bn_lightning.analysis.study import Arm, Budget


def cell(tmp_path, **changes):
    given = {"study": "rates", "problem": tiny_problem(), "arm": Arm(name="a", factors={"lr": 0.1}), "seed": 3}
    return Cell(**{**given, "out": tmp_path, "configuration": {"x": 1}, "configuration_hash": "abc", **changes})


def test_a_done_cell_holds_its_record_and_results(tmp_path):
    outcome = run_cell(cell(tmp_path))
    folder = tmp_path / "a" / "seed_3"
    record = json.loads((folder / "cell.json").read_text())
    assert (outcome.status, outcome.error) == ("done", "")
    assert (record["status"], record["label"], record["seed"], record["diverged_at"]) == ("done", "trained", 3, None)
    assert (record["configuration"], record["configuration_hash"], record["factors"]) == ({"x": 1}, "abc", {"lr": 0.1})
    assert record["seconds"] > 0
    assert "torch" in record["versions"]
    results = read_results(folder / "results.csv")
    assert set(results["quantity"]) == {"val_loss", "training_loss", "training_seconds"}
    assert (results["study"] + results["arm"] + results["seed"].astype(str) == "ratesa3").all()


def test_a_failed_cell_keeps_its_error_and_traceback_and_no_results(tmp_path):
    outcome = run_cell(cell(tmp_path, arm=Arm(name="a", callbacks=lambda: [Failing()])))
    folder = tmp_path / "a" / "seed_3"
    record = json.loads((folder / "cell.json").read_text())
    assert (outcome.status, outcome.error) == ("failed", "OSError: the disk is on fire")
    assert (record["status"], record["error"]) == ("failed", outcome.error)
    assert "Failing" in record["traceback"] or "on_train_start" in record["traceback"]
    assert not (folder / "results.csv").exists()


def test_a_diverged_run_is_a_result(tmp_path):
    arm = Arm(name="a", options={"blow_up": True})
    problem = tiny_problem(budget=Budget(max_steps=10, eval_every=5))
    assert run_cell(cell(tmp_path, arm=arm, problem=problem)).status == "done"
    record = json.loads((tmp_path / "a" / "seed_3" / "cell.json").read_text())
    assert (record["label"], record["diverged_at"]) == ("diverged", 10)


def test_a_cell_cut_off_looks_unfinished(tmp_path):
    def cut() -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell(tmp_path, arm=Arm(name="a", callbacks=cut)))
    assert json.loads((tmp_path / "a" / "seed_3" / "cell.json").read_text())["status"] == "running"


def test_only_a_process_of_its_own_leaves_ctrl_c_to_its_parent(tmp_path):
    import os

    before = signal.getsignal(signal.SIGINT)
    try:
        run_cell(cell(tmp_path), parent=os.getpid())
        assert signal.getsignal(signal.SIGINT) is before
        run_cell(cell(tmp_path), parent=os.getpid() + 1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_disk_that_is_full_from_the_start_is_a_failed_cell_and_not_the_end_of_the_study(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    outcome = run_cell(cell(tmp_path))
    assert outcome.status == "failed"
    assert "cell.json cannot be written: No space left on device" in outcome.error


def test_a_finished_cell_is_kept_unless_it_is_to_be_trained_again(tmp_path):
    assert not run_cell(cell(tmp_path)).kept
    assert run_cell(cell(tmp_path)).kept
    assert not run_cell(cell(tmp_path, redo=True)).kept
    assert not run_cell(cell(tmp_path, configuration_hash="abd")).kept
