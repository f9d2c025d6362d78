import warnings

import pytest
import torch

from bn_lightning.callbacks._activation_monitor.activation_warnings import ActivationWarnings
from bn_lightning.callbacks._activation_monitor.series import Series
from bn_lightning.errors import StatisticsWarning
from bn_lightning.functional.activations import empty_summary
from bn_lightning.functional.summarise import summarise, summarise_rows


def layer(label, op="relu", channels=4, kind="preactivation"):
    return Series(kind, label, channels, op)


def summary(x):
    return summarise_rows(x, torch.arange(x.shape[1]), elements=x.numel())


def normal(deviation=1.0, mean=0.0):
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * deviation + mean


def told(series, steps):
    """The messages by step, one list of activations a step."""
    checker, found = ActivationWarnings(series), {}
    for step, activations in enumerate(steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checker.check(step * 10, [summary(x) for x in activations])
        if caught:
            assert {one.category for one in caught} == {StatisticsWarning}
            found[step * 10] = [str(one.message) for one in caught]
    return found


def test_a_dead_layer_is_told_after_three_recorded_steps_once():
    x = normal()
    x[:, :3] = -x[:, :3].abs()
    found = told([layer("fc")], [[x]] * 6)
    assert list(found) == [20]
    assert found[20][0].startswith(
        "3 of 4 channels of fc were never active in any of the last 3 recorded steps, step 20"
    )


def test_half_of_the_channels_may_be_idle_by_the_sign_of_their_bias():
    x = normal()
    x[:, :2] = -x[:, :2].abs()
    assert told([layer("fc")], [[x]] * 4) == {}


def test_channels_that_take_turns_in_being_idle_are_not_dead():
    steps = []
    for turn in range(6):
        x = -normal().abs()
        x[0, turn % 4] = 1
        steps.append([x])
    assert told([layer("fc")], steps) == {}


def test_a_sample_can_tell_of_a_layer_that_is_all_but_dead():
    checker = ActivationWarnings([layer("fc")])
    read = summarise_rows(-normal().abs(), torch.arange(4), elements=2000)
    assert read.extremes is None
    checker.check(0, [read])
    checker.check(10, [read])
    with pytest.warns(StatisticsWarning, match=r"100\.0% of the pre-activations of fc that were read.*relu is flat"):
        checker.check(20, [read])
    checker.check(30, [read])


def test_an_odd_step_in_between_starts_the_count_anew():
    dead, alive = -normal().abs(), normal()
    assert list(told([layer("fc")], [[dead], [dead], [alive], [dead], [dead], [dead]])) == [50]
    assert told([layer("fc")], [[dead], [dead], [alive]] * 3) == {}


@pytest.mark.parametrize(("op", "expected"), [("sigmoid", [20]), ("relu", []), ("gelu", [])])
def test_a_saturated_layer_is_told_where_both_sides_are_flat(op, expected):
    # A ReLU sets half of its input to 0 on any day.
    x = normal(20.0)
    found = told([layer("fc", op)], [[x]] * 4)
    assert list(found) == expected
    if expected:
        share = (x.abs() > 4.3567).double().mean()  # where sigmoid' < 1/80
        assert found[20][0].startswith(f"{share:.0%} of the pre-activations of fc saturate sigmoid")
        assert f"standard deviation is {x.std(correction=0):.3g}" in found[20][0]


@pytest.mark.parametrize(("factor", "word"), [(0.1, "vanishes"), (10.0, "grows")])
def test_a_spread_that_changes_with_depth_is_told_with_the_factor_a_layer(factor, word):
    series = [layer(f"fc{number}") for number in range(5)]
    found = told(series, [[normal(factor**number) for number in range(5)]] * 3)
    (message,) = found[20]
    assert f"{word} with depth" in message
    assert "in fc0" in message
    assert "in fc4" in message
    assert f"a factor of {factor:g} a layer over 5 layers" in message


def test_biases_that_spread_channels_do_not_hide_that_the_signal_vanishes():
    offsets = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    series = [layer(f"fc{number}") for number in range(5)]
    found = told(series, [[normal(0.1**number) + offsets for number in range(5)]] * 3)
    assert "vanishes with depth" in found[20][0]


def test_one_odd_layer_is_no_trend():
    series = [layer(f"fc{number}") for number in range(6)]
    assert told(series, [[normal(1000.0 if number == 5 else 1.0) for number in range(6)]] * 3) == {}


def test_outputs_are_looked_at_for_nonfinite_values_alone():
    checker = ActivationWarnings([layer("act", "", kind="output")])
    bad = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    found = summarise(bad, torch.arange(4), channels=4, elements=4, nonfinite=torch.tensor([0, 1, 0, 0]))
    with pytest.warns(StatisticsWarning, match="Non-finite outputs at step 7: 1 in act"):
        checker.check(7, [found])
    checker.check(8, [found])  # told once


def test_gradients_that_do_not_come_are_told_of_where_the_tensor_itself_did():
    series = [layer("a"), layer("b"), layer("a", "", kind="preactivation_gradient"),
              layer("b", "", kind="preactivation_gradient")]  # fmt: skip
    checker, here = ActivationWarnings(series), summary(normal())
    for step in range(2):
        checker.check(step, [here, empty_summary(4), empty_summary(4), empty_summary(4)])
    with pytest.warns(StatisticsWarning, match=r"No gradient reached a in the last 3 recorded steps, step 2"):
        checker.check(2, [here, empty_summary(4), empty_summary(4), empty_summary(4)])
    checker.check(3, [here, here, empty_summary(4), here])


def test_gradients_that_overflow_under_a_scaler_are_its_business():
    bad = summarise(
        torch.tensor([1.0, torch.inf, 2.0, 3.0]),
        torch.arange(4),
        channels=4,
        elements=4,
        nonfinite=torch.tensor([0, 1, 0, 0]),
    )
    checker = ActivationWarnings([layer("fc"), layer("fc", "", kind="preactivation_gradient")])
    checker.check(0, [summary(normal()), bad], is_loss_scaled=True)
    with pytest.warns(StatisticsWarning, match="Non-finite gradients of pre-activations at step 1: 1 in fc"):
        checker.check(1, [summary(normal()), bad])
