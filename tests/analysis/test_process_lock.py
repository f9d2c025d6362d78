import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from bn_lightning.analysis.process_lock import first_free, held, lock_file

HOLD = (
    "import sys, time; from pathlib import Path; from bn_lightning.analysis.process_lock import held\n"
    "with held(Path(sys.argv[1]), 'cell'):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_a_lock_ends_with_the_process_that_is_killed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    found = []

    def wait() -> None:
        with held(tmp_path, "cell") as waited:
            found.append(waited)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.5)
    assert not found
    child.kill()
    waiting.join(20)
    child.communicate()
    assert found == [True]
    with held(tmp_path, "cell") as waited:
        assert not waited


def test_locks_of_other_names_are_not_waited_for(tmp_path):
    with held(tmp_path, "a") as one, held(tmp_path, "b") as other:
        assert (one, other) == (False, False)


def test_places_are_taken_from_the_first_on_and_free_again(tmp_path):
    number, lock = first_free(tmp_path, "worker", places=2)
    other, second = first_free(tmp_path, "worker", places=2)
    assert (number, other) == (0, 1)
    assert first_free(tmp_path, "worker", places=2) == (0, None)
    lock.release()
    assert first_free(tmp_path, "worker", places=2)[0] == 0
    second.release()


def test_a_file_system_without_locks_is_worked_on_without(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with held(tmp_path, "cell") as waited:
        assert not waited
    assert first_free(tmp_path, "worker", places=2) == (0, None)


def test_what_is_raised_within_lets_go(tmp_path):
    with pytest.raises(KeyError), held(tmp_path, "cell"):
        raise KeyError("inside")
    FileLock(lock_file(tmp_path, "cell")).acquire(timeout=0).lock.release()
