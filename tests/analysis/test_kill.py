"""Processes of a study killed in the middle by SIGKILL, which no process can catch."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny import modified

from bn_lightning.analysis.results import load_results

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

PATIENCE = 240  # seconds; a quiet machine needs a tenth of it

# The pause lies in a file that the configuration does not follow, so both runs have the same cells.
SCRIPT = """
    import sys, time
    from pathlib import Path
    import pytorch_lightning as pl
    from bn_lightning.analysis.engine import WorkerError
    from bn_lightning.analysis.runner import execute
    from bn_lightning.analysis.study import Arm
    from tiny import tiny_study

    class Paused(pl.Callback):
        def on_train_batch_start(self, *_):
            time.sleep(float(Path(__file__).with_name("pause").read_text()))

    if __name__ == "__main__":
        arms = Arm(name="quick"), Arm(name="slow", options={"lr": 0.2}, callbacks=lambda: [Paused()])
        try:
            run = execute(tiny_study(*arms), out=sys.argv[1], jobs=int(sys.argv[2]), seeds=2, progress=False)
        except WorkerError as error:
            print(error)
            sys.exit(3)
        print(run.trained, run.skipped)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "compare.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.fixture(scope="module")
def undisturbed(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert _run(script, out, jobs=1) == [4, 0]
    return _values(out)


def _start(script: Path, out: Path, *, jobs: int, pause: float = 0.0) -> subprocess.Popen:
    (script.parent / "pause").write_text(str(pause))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out), str(jobs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def _run(script: Path, out: Path, *, jobs: int) -> list[int]:
    said, trouble = _start(script, out, jobs=jobs).communicate(timeout=PATIENCE)
    assert said, trouble
    return [int(word) for word in said.split()]


def _values(out: Path) -> pd.DataFrame:
    results = load_results(out)
    return results[results["quantity"] != "training_seconds"].reset_index(drop=True)


def _statuses(out: Path) -> list[str]:
    return [json.loads((out / name).read_text()).get("status") for name in modified(out)]


def _wait_for_the_middle(out: Path) -> None:
    """Until a cell is finished and another one is in training."""
    _wait_for(lambda: {"done", "running"} <= set(_statuses(out)))


def _wait_for(true, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _workers(parent: int) -> list[int]:
    """Processes of the parent's session besides itself that loky started to train cells."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if session == parent and int(path.name) != parent and "popen_loky_posix" in command:
            found.append(int(path.name))
    return found


def _session_is_empty(parent: int) -> bool:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == parent and fields[0] != "Z":
            return False
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers by /proc")


@needs_proc
def test_a_killed_worker_is_an_error_and_the_next_run_finishes_the_rest(script, undisturbed, tmp_path):
    out = tmp_path / "run"
    child = _start(script, out, jobs=2, pause=30)
    _wait_for_the_middle(out)
    os.kill(_workers(child.pid)[0], signal.SIGKILL)
    said, trouble = child.communicate(timeout=PATIENCE)
    assert (child.returncode, "Traceback" in trouble) == (3, False), trouble
    assert "run the same again to go on" in said
    finished = _statuses(out).count("done")
    assert 1 <= finished < 4
    # What was finished is in the gathered table already.
    assert load_results(out).groupby(["arm", "seed"]).ngroups == finished
    assert _run(script, out, jobs=1) == [4 - finished, finished]
    pd.testing.assert_frame_equal(_values(out), undisturbed, check_exact=True)


@needs_proc
def test_a_killed_parent_leaves_no_worker_and_the_next_run_finishes_the_rest(script, undisturbed, tmp_path):
    out = tmp_path / "run"
    child = _start(script, out, jobs=2, pause=30)
    _wait_for_the_middle(out)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=PATIENCE)
    _wait_for(lambda: _session_is_empty(child.pid))
    finished = _statuses(out).count("done")
    assert 1 <= finished < 4
    assert _run(script, out, jobs=2) == [4 - finished, finished]
    pd.testing.assert_frame_equal(_values(out), undisturbed, check_exact=True)


def test_two_parents_on_one_folder_share_the_cells(script, undisturbed, tmp_path):
    out = tmp_path / "run"
    parents = [_start(script, out, jobs=1, pause=0.1) for _ in range(2)]
    trained = []
    for parent in parents:
        said, trouble = parent.communicate(timeout=PATIENCE)
        assert parent.returncode == 0, trouble
        trained.append(int(said.split()[0]))
    assert sum(trained) == 4, "every cell is trained once"
    assert _statuses(out) == ["done"] * 4
    pd.testing.assert_frame_equal(_values(out), undisturbed, check_exact=True)
    assert _run(script, out, jobs=1) == [0, 4]
