import threading

import pytest
from tiny import tiny_study

from bn_lightning.analysis.engine import check_engine
from bn_lightning.analysis.runner import execute
from bn_lightning.analysis.study import Arm
from bn_lightning.errors import UnknownNameError


@pytest.mark.parametrize("engine", ["loki", "threading", "multiprocessing"])
def test_an_engine_that_does_not_exist_or_shares_state_is_refused(engine):
    with pytest.raises(UnknownNameError, match=f"no engine '{engine}'.*There are: dask, loky, sequential"):
        check_engine(jobs=1, engine=engine)


def test_no_process_is_too_few():
    with pytest.raises(ValueError, match="jobs is 0"):
        check_engine(jobs=0, engine="loky")


def test_dask_needs_an_address_and_nothing_else_takes_one():
    with pytest.raises(ValueError, match=r"'dask' needs the address of a scheduler.*--address"):
        check_engine(jobs=1, engine="dask")
    with pytest.raises(ValueError, match=r"'tcp://here:1' is one of a Dask scheduler, but the engine is 'loky'"):
        check_engine(jobs=1, engine="loky", address="tcp://here:1")


def test_an_arm_that_cannot_be_pickled_is_named_with_what_holds_it_back(tmp_path):
    lock = threading.Lock()
    study = tiny_study(Arm(name="free"), Arm(name="locked", callbacks=lambda: [lock][:0]))
    with pytest.raises(ValueError, match=r"Arm 'locked' .*cannot pickle '_thread.lock' object.*--jobs 1"):
        execute(study, out=tmp_path / "run", jobs=2, seeds=1, progress=False)
    # In this process nothing needs to be pickled.
    assert execute(study, out=tmp_path / "run", jobs=1, seeds=1, progress=False).trained == 2
