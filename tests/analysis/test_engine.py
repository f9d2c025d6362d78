import pytest

from bn_lightning.analysis.engine import check_engine
from bn_lightning.errors import UnknownNameError


@pytest.mark.parametrize("engine", ["loki", "threading", "multiprocessing"])
def test_an_engine_that_does_not_exist_or_shares_state_is_refused(engine):
    with pytest.raises(UnknownNameError, match=f"no engine '{engine}'.*There are: loky, sequential"):
        check_engine(jobs=1, engine=engine)


def test_no_process_is_too_few():
    with pytest.raises(ValueError, match="jobs is 0"):
        check_engine(jobs=0, engine="loky")
