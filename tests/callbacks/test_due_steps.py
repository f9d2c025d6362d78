import pytest

from bn_lightning.callbacks._due_steps import DueSteps
from bn_lightning.schedule import Schedule

BY_EPOCH = Schedule(every_n_steps=0, every_n_epochs=1)


def test_each_step_is_due_once_however_many_batches_it_has():
    steps, due = DueSteps(Schedule(every_n_steps=2)), []
    for step in (0, 0, 1, 1, 2, 2):
        due.append(steps.begins(step))
        steps.trained()
    assert due == [True, False, False, False, True, False]


def test_a_due_step_between_two_batches_is_due_at_the_second():
    steps = DueSteps(Schedule(every_n_steps=3))
    assert [steps.begins(step) for step in (0, 2, 4, 5)] == [True, False, True, False]


@pytest.mark.parametrize(("schedule", "before", "after"), [(BY_EPOCH, False, True), (Schedule(3), True, False)])
def test_a_step_whose_batch_was_refused_begins_with_the_next_one_and_is_due_once(schedule, before, after):
    steps = DueSteps(schedule)
    assert steps.begins(2) is False
    steps.trained()
    assert steps.begins(3) is before  # refused: not trained
    steps.begin_epoch(1)
    assert steps.begins(3) is after
    steps.trained()
    assert steps.begins(4) is False  # the epoch's first step has been


def test_a_step_that_began_in_an_epoch_is_not_the_first_of_the_next():
    steps = DueSteps(BY_EPOCH)
    steps.begins(1)
    steps.trained()
    steps.begin_epoch(1)
    assert [steps.begins(1), steps.begins(2), steps.begins(3)] == [False, True, False]


def test_training_may_end_at_a_due_step_that_no_batch_was_seen_at():
    steps = DueSteps(Schedule(every_n_steps=2))
    steps.begins(0)
    assert not steps.due_at_end(0)  # due, and refused
    steps.trained()
    assert [steps.due_at_end(step) for step in (0, 1, 2)] == [False, False, True]


def test_training_may_end_at_a_step_that_was_refused_and_would_begin_an_epoch():
    steps = DueSteps(BY_EPOCH)
    steps.begins(3)
    steps.begin_epoch(1)
    assert steps.due_at_end(3)
