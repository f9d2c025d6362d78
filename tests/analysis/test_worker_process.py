import os
import subprocess
import sys
import textwrap
import time

import pytest

from bn_lightning.analysis import worker_process
from bn_lightning.analysis.worker_process import become_worker, gpus_of_worker, visible_gpus

CHILD = """
    import os, sys, time
    from pathlib import Path
    from bn_lightning.analysis.worker_process import become_worker
    become_worker(os.getppid(), Path(sys.argv[1]))
    Path(sys.argv[1], "pid").write_text(str(os.getpid()))
    time.sleep(60)
"""
PARENT = """
    import subprocess, sys
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows keeps the number of a parent that is gone")
def test_a_worker_ends_soon_after_its_parent_was_killed(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), textwrap.dedent(CHILD)]
    parent = subprocess.Popen(command)
    pid = tmp_path / "pid"
    _wait_for(lambda: pid.is_file() and pid.read_text())
    parent.kill()
    parent.wait()
    _wait_for(lambda: not _runs(int(pid.read_text())))


def _runs(pid: int) -> bool:
    try:
        # Where nobody waits for orphans, one that ended stays as a zombie.
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(true, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(worker_process, "_taken", {"watch": None})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_workers_of_one_machine_take_different_gpus(tmp_path, monkeypatch, fresh):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    seen, locks = [], []
    for _ in range(4):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        worker_process._taken.pop("gpus", None)
        become_worker(os.getpid() + 1, tmp_path)
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        locks.append(worker_process._taken["gpus"])
    for lock in locks:
        lock.release()
    assert seen == ["0", "1", "2", "0"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_gpu_or_none_is_left_to_torch(tmp_path, monkeypatch, fresh, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    become_worker(os.getpid() + 1, tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_process_that_hands_out_cells_keeps_its_gpus(tmp_path, monkeypatch, fresh):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    become_worker(os.getpid(), tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())


def test_the_gpus_are_those_the_user_left_visible():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5"}, 2) == ("2", "5")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, 0) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, 0) == ()


@pytest.mark.parametrize(("workers", "gpus"), [(1, 4), (4, 4), (7, 3), (8, 2)])
def test_each_gpu_gets_as_equal_a_share_as_can_be(workers, gpus):
    devices = tuple(map(str, range(gpus)))
    shares = [sum(device in gpus_of_worker(n, devices) for n in range(workers)) for device in devices]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("count", "gpus", "groups"),
    [(2, 4, [("0", "1"), ("2", "3")]), (2, 5, [("0", "1"), ("2", "3")]), (3, 3, [("0", "1", "2")])],
)
def test_a_cell_of_several_processes_has_gpus_that_no_other_group_has(count, gpus, groups):
    devices = tuple(map(str, range(gpus)))
    assert [gpus_of_worker(n, devices, count) for n in range(4)] == [groups[n % len(groups)] for n in range(4)]
