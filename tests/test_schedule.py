"""The three rules of a schedule."""

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


def test_default():
    assert [step for step in range(120) if Schedule().due(step)] == [0, 50, 100]


@pytest.mark.parametrize("options", [{"every_n_steps": -1}, {"dense_until": -1}, {"steps": (3, -2)}])
def test_negative_steps(options):
    with pytest.raises(ValueError, match=r"counted from 0, so none of .* may be negative"):
        Schedule(**options)


def test_a_schedule_that_never_acts():
    with pytest.raises(ValueError, match="never acts: give every_n_steps, dense_until or steps"):
        Schedule(every_n_steps=0)
