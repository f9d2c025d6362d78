import pytest
import torch

from bn_lightning.callbacks._step_batches import StepBatches


def test_tensors_that_training_writes_to_now_and_then_are_kept_as_they_were():
    batches = StepBatches()
    for number in range(3):
        batch = torch.zeros(2)
        batches.keep(batch)
        batch.add_(number)
        batches.trained_on()
    assert [batch.tolist() for batch in batches.now] == [[0, 0]] * 3


def test_a_batch_passed_over_is_no_part_of_the_step():
    batches = StepBatches()
    for value in (1.0, 2.0):
        batch = torch.tensor([value])
        batches.keep(batch)
        batches.trained_on(passed_over=value == 2)
    assert [batch.tolist() for batch in batches.now] == [[1.0]]


@pytest.mark.parametrize("steps", [False, True])
def test_a_batch_that_training_skipped_is_no_part_of_any_step(steps):
    batches = StepBatches()
    batches.keep(torch.tensor([1.0]))
    batches.trained_on()
    batches.keep(torch.tensor([2.0]))
    if steps:
        batches.begin_step()
    batches.keep(torch.tensor([3.0]))
    batches.trained_on()
    assert [batch.tolist() for batch in (*batches.last, *batches.now)] == [[1.0], [3.0]]
