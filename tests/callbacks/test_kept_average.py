import pytest
from torch import nn
from torch.testing import assert_close

from bn_lightning.callbacks._kept_average import KeptAverage
from bn_lightning.surgery.statistics.running_statistics import statistics_of


def norm_at(mean):
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(mean)
    return norm


@pytest.fixture
def kept_and_norm():
    """A running mean of 1 kept, with 5 in its place since step 7."""
    kept, norm = KeptAverage(), norm_at(1.0)
    running = kept.running_of(norm)
    norm.running_mean.fill_(5.0)
    kept.keep(running, norm, step=7)
    return kept, norm


def test_what_is_kept_comes_back_once(kept_and_norm):
    kept, norm = kept_and_norm
    kept.put_back(norm)
    assert norm.running_mean.item() == 1.0
    assert not kept
    assert_close(kept.running_of(norm), statistics_of(norm_at(1.0)))


def test_statistics_that_another_has_reset_are_left(kept_and_norm):
    kept, norm = kept_and_norm
    norm.reset_running_stats()
    kept.put_back(norm)
    assert norm.running_mean.item() == 0.0


@pytest.mark.parametrize(("mean", "stays"), [(5.0, True), (3.0, False)])
def test_it_is_forgotten_with_another_module_only(kept_and_norm, mean, stays):
    kept, _ = kept_and_norm
    kept.forget_if_changed(norm_at(mean))
    assert bool(kept) is stays
    assert kept.step == (7 if stays else -1)


def test_it_goes_through_a_checkpoint(kept_and_norm):
    kept, norm = kept_and_norm
    again = KeptAverage()
    again.load_state_dict(kept.state_dict())
    assert again.is_of_checkpoint
    assert not kept.is_of_checkpoint
    assert again.step == 7
    again.put_back(norm)
    assert norm.running_mean.item() == 1.0


def test_both_can_be_written_without_an_end(kept_and_norm):
    kept, _ = kept_and_norm
    other = norm_at(0.0)
    kept.write_running(other)
    assert other.running_mean.item() == 1.0
    kept.in_module = False
    kept.write_population(other)
    assert other.running_mean.item() == 5.0
    assert kept.in_module
    assert kept


def test_a_checkpoint_says_which_statistics_it_carries(kept_and_norm):
    kept, norm = kept_and_norm

    def marked(**checkpoint):
        checkpoint["global_step"] = 9
        kept.mark(checkpoint, "pooled")
        return checkpoint["bn_lightning_statistics"]

    population = {"kind": "population", "estimator": "pooled", "global_step": 7}
    running = {"kind": "running", "estimator": "pooled", "global_step": 9}
    assert marked() == marked(callbacks={}) == population
    kept.in_module = False  # only the averaged weights, which go with callbacks, hold them
    assert marked() == running
    assert marked(callbacks={}) == population
    kept.put_back(norm)
    assert marked(callbacks={}) == running
