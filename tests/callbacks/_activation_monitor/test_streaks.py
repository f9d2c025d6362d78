import pytest

from bn_lightning.callbacks._activation_monitor.streaks import Streaks, warn
from bn_lightning.errors import StatisticsWarning


def test_things_are_counted_apart_and_told_once():
    streaks = Streaks()
    assert [streaks.lasts("a", True) for _ in range(5)] == [False, False, True, False, False]
    assert [streaks.lasts("b", now) for now in (True, True, False, True, True, True)][-2:] == [False, True]
    assert [streaks.is_new("c"), streaks.is_new("c"), streaks.is_new("a")] == [True, False, False]


def test_warnings_are_of_the_kind_that_can_be_filtered():
    with pytest.warns(StatisticsWarning, match="so it is"):
        warn("so it is")
