"""The rules of a schedule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_lightning.schedule import Schedule

numbers = st.integers(0, 60)


@given(every=numbers, dense=numbers, steps=st.lists(numbers, max_size=3), step=numbers)
def test_a_step_is_due_when_any_rule_names_it(every, dense, steps, step):
    if not (every or dense or steps):
        return
    named = set(range(0, 200, every) if every else ()) | set(range(dense)) | set(steps)
    assert Schedule(every, dense, steps).due(step) == (step in named)


@given(every=numbers, epochs=st.integers(0, 5), length=st.integers(1, 12), step=numbers)
def test_the_first_step_of_every_so_many_epochs_is_due_too(every, epochs, length, step):
    if not (every or epochs):
        return
    named = set(range(0, 61, every) if every else ()) | set(range(0, 61, epochs * length) if epochs else ())
    begins = None if step % length else step // length
    assert Schedule(every, every_n_epochs=epochs).due(step, begins_epoch=begins) == (step in named)


def test_default():
    assert [step for step in range(120) if Schedule().due(step)] == [0, 50, 100]
    assert not Schedule(every_n_steps=0, every_n_epochs=1).due(0)  # a step within an epoch, for all it was told


@pytest.mark.parametrize(
    "options", [{"every_n_steps": -1}, {"dense_until": -1}, {"steps": (3, -2)}, {"every_n_epochs": -2}]
)
def test_negative_steps(options):
    with pytest.raises(ValueError, match=r"counted from 0, so none of Schedule\(.*-\d.*\) may be negative"):
        Schedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0.5}, r"every_n_steps cannot be 0\.5"),
        ({"every_n_epochs": True}, "every_n_epochs cannot be True"),
        ({"dense_until": "10"}, "dense_until cannot be '10'"),
        ({"steps": (1, 2.0)}, r"steps\[1\] cannot be 2\.0"),
    ],
)
def test_steps_that_are_no_whole_numbers(options, message):
    with pytest.raises(TypeError, match=message):
        Schedule(**options)


def test_a_whole_number_of_numpy_is_one():
    assert Schedule(every_n_steps=np.int64(3)).due(3)


def test_a_schedule_that_never_acts():
    with pytest.raises(ValueError, match="never acts: give every_n_steps, every_n_epochs, dense_until or steps"):
        Schedule(every_n_steps=0)


def test_the_text_that_older_checkpoints_have_in_their_keys_is_kept():
    assert repr(Schedule(5, 2, (7,))) == "Schedule(every_n_steps=5, dense_until=2, steps=(7,))"
    assert repr(Schedule(5, every_n_epochs=2)).endswith("steps=(), every_n_epochs=2)")
