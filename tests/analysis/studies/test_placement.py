import pytest

from bn_lightning.analysis.prepare import prepare_study


@pytest.mark.parametrize(
    ("max_steps", "every", "figures"), [(60, 50, False), (100, 50, True), (1_000, 50, True), (50_000, 100, True)]
)
def test_runs_are_recorded_as_often_as_is_of_use(max_steps, every, figures):
    study = prepare_study("placement", max_steps=max_steps, eval_every=max_steps)
    monitor = study.arms[0].callbacks()[-1]
    assert (monitor.settings.schedule.every_n_steps, monitor.settings.figures) == (every, figures)
