import importlib
import json
import sys
import threading
import time
import types
from contextlib import ExitStack

import pandas as pd
import pytest
import pytorch_lightning as pl
from dask_processes import dask_scheduler, dask_worker
from tiny import modified, tiny_problem, tiny_study

from bn_lightning.analysis import dask_cluster
from bn_lightning.analysis.dask_cluster import ClusterError
from bn_lightning.analysis.engine import WorkerError
from bn_lightning.analysis.runner import ConfigurationChangedWarning, execute
from bn_lightning.analysis.study import Arm

NOWHERE = "tcp://127.0.0.1:9"  # the port of a service that nobody runs


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with dask_scheduler(tmp_path_factory.mktemp("scheduler")) as address:
        yield address


@pytest.fixture
def workers(address, tmp_path):
    with ExitStack() as stack:
        for number in range(2):
            (tmp_path / f"worker_{number}").mkdir()
        yield [stack.enter_context(dask_worker(address, tmp_path / f"worker_{number}")) for number in range(2)]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1)


def run(out, study=None, **options):
    return execute(study or tiny_study(), out=out, **{"seeds": 2, "progress": False, **options})


def values(done):
    return done.results[done.results["quantity"] != "training_seconds"]


def test_a_scheduler_without_workers_is_said(address, impatient, tmp_path):
    with pytest.raises(ClusterError, match=rf"{address}.* has no worker after 1 s.*dask worker"):
        run(tmp_path / "run", engine="dask", address=address)


def test_workers_with_several_threads_are_refused(address, tmp_path):
    with (
        dask_worker(address, tmp_path, threads=2),
        pytest.raises(ClusterError, match=r"several threads: tcp://127\.0\.0\.1:\d+ \(2\).*--nthreads 1"),
    ):
        run(tmp_path / "run", engine="dask", address=address)


def test_a_cluster_gives_the_same_table_as_loky(address, workers, tmp_path):
    width = 0.2  # captured by a function that no worker can import
    arms = Arm(name="a", options={"lr": 0.1}), Arm(name="b", callbacks=lambda: [pl.Callback()] * (width > 0))
    study = tiny_study(*arms)
    there = run(tmp_path / "there", study, engine="dask", address=address)
    here = run(tmp_path / "here", study, engine="loky", jobs=2)
    assert (there.trained, there.failures) == (4, ())
    pd.testing.assert_frame_equal(values(there), values(here), check_exact=True)
    pd.testing.assert_frame_equal(
        there.cells.drop(columns="seconds"), here.cells.drop(columns="seconds"), check_exact=True
    )
    assert run(tmp_path / "there", study, engine="dask", address=address).trained == 0


def test_a_worker_killed_in_the_middle_costs_time_only(address, workers, tmp_path):
    pause = tmp_path / "pause"
    pause.write_text("0.3")
    name = str(pause)

    class Paused(pl.Callback):
        def on_train_batch_start(self, *_):
            import time
            from pathlib import Path

            time.sleep(float(Path(name).read_text()))

    study = tiny_study(Arm(name="a", callbacks=lambda: [Paused()]), Arm(name="b", callbacks=lambda: [Paused()]))
    out, killed = tmp_path / "run", []

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            running = [json.loads((out / cell).read_text())["status"] for cell in modified(out)].count("running")
            if running == 2:
                killed.append(workers[0].kill())
                break
            time.sleep(0.05)
        pause.write_text("0")

    killing = threading.Thread(target=kill_one)
    killing.start()
    done = run(out, study, engine="dask", address=address)
    killing.join()
    assert killed == [None]
    assert workers[0].wait() == -9
    assert (done.trained, done.failures) == (4, ())
    undisturbed = run(tmp_path / "undisturbed", study, jobs=1)
    pd.testing.assert_frame_equal(values(done), values(undisturbed), check_exact=True)


def test_workers_import_from_the_folders_of_the_process_that_started_the_study(address, workers, tmp_path, monkeypatch):
    text = "import tiny\n\n\ndef make(lr=0.1):\n    return tiny.TinyNet(lr=lr)\n"
    (tmp_path / "beside_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import beside_of_mine

    def train():
        study = tiny_study(problem=tiny_problem(module=beside_of_mine.make))
        return run(tmp_path / "run", study, engine="dask", address=address)

    assert train().trained == 4
    # The workers live on, and hold the module as it was.
    (tmp_path / "beside_of_mine.py").write_text(text.replace("lr=lr", "lr=lr / 100"))
    importlib.invalidate_caches()
    importlib.reload(beside_of_mine)
    with (
        pytest.warns(ConfigurationChangedWarning),
        pytest.raises(WorkerError, match=r"other versions of beside_of_mine .*Restart the workers of the cluster"),
    ):
        train()


def test_a_module_that_only_this_process_has_is_named(address, workers, tmp_path, monkeypatch):
    only_here = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    exec("import tiny\ndef make(lr=0.1):\n    return tiny.TinyNet(lr=lr)", vars(only_here))
    study = tiny_study(problem=tiny_problem(module=only_here.make))
    with pytest.raises(WorkerError, match=r"could not load a cell \(ModuleNotFoundError.*'only_here'.*PYTHONPATH"):
        run(tmp_path / "run", study, engine="dask", address=address)


@pytest.mark.parametrize("where", [NOWHERE, "no scheduler at all"])
def test_a_cluster_that_does_not_answer_is_named(impatient, tmp_path, where):
    started = time.monotonic()
    with pytest.raises(ClusterError, match=rf"No Dask scheduler answered at '{where}' within 1 s.*--engine loky"):
        run(tmp_path / "run", engine="dask", address=where)
    assert time.monotonic() - started < 20


def test_a_worker_that_does_not_see_the_run_folder_is_named(tmp_path):
    class Blind:
        def wait_for_workers(self, count, timeout):
            assert count == 1

        def nthreads(self):
            return {"tcp://one:1": 1, "tcp://two:1": 1}

        def run(self, function, path):
            return {"tcp://one:1": function(path), "tcp://two:1": False}

    with pytest.raises(ClusterError, match=r"do not see .*: tcp://two:1\. Name a folder"):
        dask_cluster._check_workers(Blind(), "tcp://scheduler:1", tmp_path)


def test_without_the_package_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'bn-lightning\[dask\]'"):
        run(tmp_path / "run", engine="dask", address=NOWHERE)
