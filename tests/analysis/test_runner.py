import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
from tiny import Failing, TinyData, TinyNet, modified, tiny_problem, tiny_study

from bn_lightning.analysis.engine import WorkerError
from bn_lightning.analysis.results import load_cells, load_results
from bn_lightning.analysis.runner import (
    CellsFailedWarning,
    ConfigurationChangedWarning,
    OtherVersionsWarning,
    StudyInterrupted,
    _what_a_report_needs,
    execute,
)
from bn_lightning.analysis.study import Arm, Budget
from bn_lightning.errors import NoEffectWarning, RunFolderError, UnknownNameError


def run(tmp_path, study=None, **options):
    given = {"out": tmp_path / "run", "progress": False}
    return execute(study or tiny_study(), **{**given, **options})


def test_every_arm_is_trained_with_every_seed(tmp_path):
    done = run(tmp_path)
    assert (done.trained, done.skipped, done.failures) == (4, 0, ())
    assert done.cells[["arm", "seed"]].to_numpy().tolist() == [["slow", 0], ["quick", 0], ["slow", 1], ["quick", 1]]
    assert set(done.cells["status"]) == {"done"}
    losses = done.results[done.results["quantity"] == "val_loss"]
    assert losses.groupby(["arm", "seed"])["step"].apply(list).tolist() == [[0, 5, 10]] * 4
    start = losses[losses["step"] == 0].pivot(index="arm", columns="seed", values="value")
    assert (start.loc["slow"] == start.loc["quick"]).all()
    end = losses[losses["step"] == 10].pivot(index="arm", columns="seed", values="value")
    assert (end.loc["quick"] < end.loc["slow"]).all()
    pd.testing.assert_frame_equal(load_results(tmp_path / "run"), done.results, check_exact=True)


def test_finished_cells_are_not_trained_again_unless_told_to(tmp_path):
    first = run(tmp_path)
    before = modified(tmp_path / "run")
    second = run(tmp_path)
    assert (second.trained, second.skipped) == (0, 4)
    assert modified(tmp_path / "run") == before
    pd.testing.assert_frame_equal(first.results, second.results, check_exact=True)
    third = run(tmp_path, redo=True)
    assert third.trained == 4
    assert not set(modified(tmp_path / "run").items()) & set(before.items())
    values = [frame[frame["quantity"] != "training_seconds"] for frame in (first.results, third.results)]
    pd.testing.assert_frame_equal(*values, check_exact=True)


def test_more_seeds_train_only_the_new_ones(tmp_path):
    run(tmp_path, seeds=1)
    more = run(tmp_path, seeds=3)
    assert (more.trained, more.skipped) == (4, 2)
    assert sorted(set(more.results["seed"])) == [0, 1, 2]


def test_seeds_can_be_named(tmp_path):
    assert sorted(set(run(tmp_path, seeds=(7, 5)).results["seed"])) == [5, 7]


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1]])
def test_seeds_that_are_none_are_refused(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds is how many"):
        run(tmp_path, seeds=seeds)


def test_an_unknown_engine_is_refused_before_the_folder_is_touched(tmp_path):
    with pytest.raises(UnknownNameError, match="no engine 'ray'"):
        run(tmp_path, engine="ray")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_study_is_refused(tmp_path):
    run(tmp_path, seeds=1)
    with pytest.raises(RunFolderError, match="belongs to the study 'rates'"):
        run(tmp_path, tiny_study(name="other"))


def test_cells_of_another_configuration_are_trained_again_and_it_is_said(tmp_path):
    run(tmp_path)
    changed = tiny_study(Arm(name="slow", options={"lr": 0.02}), Arm(name="quick", options={"lr": 0.2}))
    with pytest.warns(ConfigurationChangedWarning, match=r"2 finished cells .* \(arm_options changed\)"):
        again = run(tmp_path, changed)
    assert (again.trained, again.skipped) == (2, 2)


def test_no_cell_of_the_old_configuration_is_left_in_the_tables_when_a_process_dies(tmp_path):
    run(tmp_path, tiny_study(Arm(name="a")))
    dying = tiny_study(Arm(name="a", options={"lr": 0.2}, callbacks=lambda: [Dying()]))
    with pytest.warns(ConfigurationChangedWarning), pytest.raises(WorkerError, match="run the same again"):
        run(tmp_path, dying, jobs=2)
    assert load_results(tmp_path / "run").empty
    assert "done" not in set(load_cells(tmp_path / "run")["status"])


def test_a_failed_cell_is_named_the_others_go_on_and_it_is_tried_again(tmp_path):
    def study(*callbacks):
        return tiny_study(Arm(name="fine"), Arm(name="broken", callbacks=lambda: list(callbacks)))

    with pytest.warns(CellsFailedWarning, match="2 of 4 cells failed: broken, seed 0: OSError: the disk is on fire"):
        failed = run(tmp_path, study(Failing()))
    assert [(cell.arm, cell.seed) for cell in failed.failures] == [("broken", 0), ("broken", 1)]
    assert set(failed.results["arm"]) == {"fine"}
    assert failed.cells["status"].tolist() == ["done", "failed"] * 2
    mended = run(tmp_path, study())
    assert (mended.trained, mended.skipped) == (2, 2)


class Warns(Failing):
    def on_train_start(self, trainer, pl_module):
        warnings.warn("nothing to act on", NoEffectWarning, stacklevel=1)
        warnings.warn("of somebody else", DeprecationWarning, stacklevel=1)


def test_what_the_package_warns_of_in_cells_is_said_once(tmp_path):
    with pytest.warns(NoEffectWarning, match=r"nothing to act on \(cell a, seed 0 and 1 more\)") as caught:
        run(tmp_path, tiny_study(Arm(name="a", callbacks=lambda: [Warns()])))
    assert len(caught) == 1
    record = json.loads((tmp_path / "run" / "a" / "seed_1" / "cell.json").read_text())
    assert ["DeprecationWarning", "of somebody else"] in record["warnings"]


def test_processes_give_the_same_numbers_and_take_lambdas(tmp_path):
    width = 0.2  # captured, so it must travel with the function
    problem = tiny_problem(module=lambda lr=0.1: TinyNet(lr=lr * width), data=lambda: TinyData())
    study = tiny_study(problem=problem)
    here = run(tmp_path, study, out=tmp_path / "here", engine="sequential")
    there = run(tmp_path, study, out=tmp_path / "there", jobs=2)
    values = [frame[frame["quantity"] != "training_seconds"] for frame in (here.results, there.results)]
    pd.testing.assert_frame_equal(*values, check_exact=True)
    assert (tmp_path / "there" / "slow" / "seed_1" / "cell.json").is_file()


class Dying(Failing):
    def on_train_start(self, trainer, pl_module):
        os._exit(7)


def test_a_process_that_dies_is_an_error_that_says_how_to_go_on(tmp_path):
    study = tiny_study(Arm(name="a", callbacks=lambda: [Dying()]))
    with pytest.raises(WorkerError, match=r"engine 'loky' failed.*run the same again.*TerminatedWorkerError"):
        run(tmp_path, study, jobs=2)


def test_ctrl_c_in_this_process_keeps_what_is_finished(tmp_path):
    calls = []

    def interrupted() -> list:
        calls.append(1)
        if len(calls) == 4:  # the first call describes the arm, the others make callbacks of its cells
            raise KeyboardInterrupt
        return []

    study = tiny_study(Arm(name="a", callbacks=interrupted))
    with pytest.raises(StudyInterrupted, match="2 of 3 cells are finished and kept"):
        run(tmp_path, study, seeds=3)
    assert sorted(set(load_results(tmp_path / "run")["seed"])) == [0, 1]
    on = run(tmp_path, study, seeds=3)
    assert (on.trained, on.skipped) == (1, 2)


SCRIPT = """
    import sys, time
    import pytorch_lightning as pl
    from bn_lightning.analysis.runner import StudyInterrupted, execute
    from bn_lightning.analysis.study import Arm
    from tiny import tiny_study

    class Slow(pl.Callback):
        def on_train_batch_start(self, *_):
            time.sleep(0.02 if sys.argv[2] == "fast" else 60)

    if __name__ == "__main__":
        study = tiny_study(Arm(name="quick"), Arm(name="slow", callbacks=lambda: [Slow()]))
        try:
            run = execute(study, out=sys.argv[1], jobs=int(sys.argv[3]), seeds=2, progress=False)
        except StudyInterrupted as error:
            print(error)
            sys.exit(130)
        print(run.trained, run.skipped)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups, as a terminal's Ctrl-C uses them")
def test_ctrl_c_stops_the_processes_keeps_finished_cells_and_the_next_run_goes_on(tmp_path):
    script = tmp_path / "compare.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    command = [sys.executable, str(script), str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    # A background job ignores Ctrl-C and hands that on, as when these tests run in one; a terminal's job does not.
    child = subprocess.Popen([*command, "sleepy", "2"], start_new_session=True, preexec_fn=_heed_ctrl_c, **pipes)
    deadline = time.monotonic() + 90
    done = out / "quick" / "seed_0" / "cell.json"
    begun = out / "slow" / "seed_0" / "cell.json"
    while time.monotonic() < deadline:
        if done.is_file() and json.loads(done.read_text())["status"] == "done" and begun.is_file():
            break
        time.sleep(0.1)
    else:
        os.killpg(child.pid, signal.SIGKILL)
        pytest.fail(f"no cell was finished in time: {child.communicate()}")
    # As a terminal does: to every process of the group at once.
    os.killpg(child.pid, signal.SIGINT)
    said, trouble = child.communicate(timeout=90)
    assert child.returncode == 130
    assert "Interrupted: " in said
    assert "Traceback" not in trouble
    finished = int(said.split("Interrupted: ")[1].split(" of 4")[0])
    assert 1 <= finished < 4
    with pytest.raises(ProcessLookupError):
        _wait_for_the_group_to_end(child.pid)
    kept = {name: at for name, at in modified(out).items() if json.loads((out / name).read_text())["status"] == "done"}
    assert len(kept) == finished
    # The callback's code is the same, so its cells are; only what was cut off is trained.
    second = subprocess.run([*command, "fast", "1"], timeout=90, check=True, **pipes)
    assert second.stdout.split() == [str(4 - finished), str(finished)]
    assert kept.items() <= modified(out).items()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_the_group_to_end(group: int) -> None:
    for _ in range(100):
        os.killpg(group, 0)
        time.sleep(0.1)


def test_cells_of_other_versions_are_kept_and_it_is_said(tmp_path):
    run(tmp_path)
    for path in (tmp_path / "run" / "slow").glob("*/cell.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "versions": {**record["versions"], "torch": "2.6.0"}}))
    with pytest.warns(OtherVersionsWarning, match=r"2 finished cells .* are kept: torch 2\.6\.0, now .*--redo"):
        assert run(tmp_path).trained == 0
    assert run(tmp_path, redo=True).trained == 4
    assert run(tmp_path).trained == 0


def test_trainer_options_that_leave_the_processes_of_a_cell_open_are_refused(tmp_path):
    study = tiny_study(problem=tiny_problem(trainer_options={"accelerator": "cpu", "devices": -1}))
    with pytest.raises(ValueError, match=r"devices=-1\. Say how many"):
        run(tmp_path, study)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [1, "1", "auto"])
def test_one_device_may_be_asked_for(tmp_path, devices):
    options = {"accelerator": "cpu", "devices": devices}
    assert run(tmp_path, tiny_study(problem=tiny_problem(trainer_options=options)), seeds=1).trained == 2


def test_a_cell_that_another_run_finished_meanwhile_is_not_trained(tmp_path):
    def meanwhile() -> list:
        if not (tmp_path / "run" / "b" / "seed_0").exists() and (tmp_path / "run" / "a" / "seed_0").exists():
            run(tmp_path, tiny_study(Arm(name="b"), name="rates"), seeds=1)
        return []

    # The other arm's cell is trained from within the first one's, as another process would.
    study = tiny_study(Arm(name="a", callbacks=meanwhile), Arm(name="b"))
    done = run(tmp_path, study, seeds=1)
    assert (done.trained, done.skipped, len(done.cells)) == (1, 1, 2)


def test_a_budget_of_its_own_decides_the_number_of_seeds(tmp_path):
    study = tiny_study(problem=tiny_problem(budget=Budget(max_steps=5, eval_every=5, seeds=1)))
    assert run(tmp_path, study).trained == 2


def test_the_folder_that_the_environment_named_is_kept_with_the_run(tmp_path, monkeypatch):
    study = tiny_study(problem=tiny_problem(data=functools.partial(dict, data_dir=str(tmp_path))))
    for value, kept in ((str(tmp_path), {"BN_LIGHTNING_DATA": str(tmp_path)}), (str(tmp_path / "other"), {}), ("", {})):
        monkeypatch.setenv("BN_LIGHTNING_DATA", value)
        assert _what_a_report_needs(study)["environment"] == kept
