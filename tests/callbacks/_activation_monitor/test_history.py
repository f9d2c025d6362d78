import numpy as np

from bn_lightning.callbacks._activation_monitor.history import PERCENTAGES, DistributionHistory


def test_a_short_run_is_kept_whole():
    history = DistributionHistory()
    for step in range(50):
        history.add(step, {"a": [step + share for share in PERCENTAGES]})
    assert list(history.of("a")) == list(range(50))
    np.testing.assert_allclose(history.of("a")[7], 7 + np.array(PERCENTAGES), rtol=1e-6)


def test_a_long_run_is_kept_at_evenly_spread_steps_with_bounded_memory():
    history = DistributionHistory()
    for step in range(0, 100_000, 10):
        history.add(step, {"a": [0.0] * 64})
        assert len(history.of("a")) <= 80
    steps = np.array(list(history.of("a")))
    assert steps[0] == 0
    assert len(np.unique(np.diff(steps))) == 1
    assert len(steps) >= 40


def test_series_may_come_and_go():
    history = DistributionHistory()
    history.add(0, {"a": [0.0] * 64})
    history.add(1, {"b": [0.0] * 64})
    assert list(history.of("a")) == [0]
    assert list(history.of("b")) == [1]
    assert history.of("c") == {}
