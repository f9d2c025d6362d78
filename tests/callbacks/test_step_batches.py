import torch

from bn_lightning.callbacks._step_batches import StepBatches


def test_tensors_are_shared_once_training_is_seen_not_to_write_to_them():
    batches = StepBatches()
    given = [torch.zeros(2) for _ in range(3)]
    for batch in given:
        batches.begin_step()
        batches.keep(batch)
        batches.trained_on()
    assert batches.now[0] is given[2]
    assert batches.last[0] is given[1]


def test_tensors_that_training_writes_to_are_kept_as_they_were():
    batches = StepBatches()
    for _ in range(3):
        batch = torch.zeros(2)
        batches.keep(batch)
        batch.add_(1)
        batches.trained_on()
    assert [batch.tolist() for batch in batches.now] == [[0, 0]] * 3


def test_a_batch_passed_over_is_no_part_of_the_step():
    batches = StepBatches()
    for value in (1.0, 2.0):
        batch = torch.tensor([value])
        batches.keep(batch)
        batches.trained_on(passed_over=value == 2)
    assert [batch.tolist() for batch in batches.now] == [[1.0]]
