import numpy as np
import pandas as pd
import pytest
from runs import ARMS, made_up_results, made_up_times

from bn_lightning.analysis.plots import plot_steps_to_target


def table(**steps):
    """Steps per arm; a negative number is censored at its size."""
    rows = [(arm, seed, abs(at), at < 0) for arm, ats in steps.items() for seed, at in enumerate(ats)]
    return pd.DataFrame(rows, columns=["arm", "seed", "steps", "censored"])


def drawn(ax, gid):
    return [line.get_xdata().tolist() for line in ax.lines if line.get_gid() == gid]


def notes(ax):
    ax.figure.draw_without_rendering()
    return [tick.get_text() for tick in ax.child_axes[0].get_yticklabels()]


def test_seeds_censored_seeds_and_medians_are_those_of_the_table():
    ax = plot_steps_to_target(table(none=[-500, 450, 400, -500], before=[60, 40, 50]), arms=ARMS)
    assert drawn(ax, "seen") == [[450, 400], [60, 40, 50]]
    assert drawn(ax, "censored") == [[500, 500], []]
    assert drawn(ax, "median") == [[50, 50]]
    assert notes(ax) == ["2 of 4 reached it,\nmedian not reached", "3 of 3 reached it,\nmedian 50"]
    censored = next(line for line in ax.lines if line.get_gid() == "censored")
    assert (censored.get_marker(), censored.get_markerfacecolor()) == (">", "none")
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "not reached: observed up to here"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["no norm", "BN before"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xscale() == "log"


def test_a_median_past_half_counts_censored_seeds_as_later():
    ax = plot_steps_to_target(table(none=[10, 20, 30, -100, -100]))
    assert drawn(ax, "median") == [[30, 30]]
    # A run cut off early is no fast run.
    ax = plot_steps_to_target(table(none=[-5, 20, 30, -5, 40]))
    assert drawn(ax, "median") == [[40, 40]]


def test_medians_agree_with_numpy_on_a_realistic_table():
    times = made_up_times(made_up_results(), 0.95)
    reached = times[~times["censored"]].groupby("arm", sort=False)["steps"].median()
    assert [x[0] for x in drawn(plot_steps_to_target(times), "median")] == reached.tolist()


def test_nothing_censored_is_not_in_the_legend():
    ax = plot_steps_to_target(table(none=[10]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one seed", "median"]


def test_a_target_reached_before_training_makes_the_axis_linear():
    assert plot_steps_to_target(table(none=[0, 10])).get_xscale() == "linear"


def test_seconds_can_be_drawn():
    times = table(none=[10]).rename(columns={"steps": "seconds"})
    assert plot_steps_to_target(times, value="seconds", xlabel="seconds").get_xlabel() == "seconds"


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"columns arm, seed, seconds and censored.*lacks seconds and has arm, seed"):
        plot_steps_to_target(table(none=[10]), value="seconds")


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="has no rows"):
        plot_steps_to_target(table(none=[10]).iloc[:0])


def test_a_missing_time_is_refused():
    with pytest.raises(ValueError, match=r"Arm 'none', seed 0 has steps = nan; .* censored=True"):
        plot_steps_to_target(table(none=[10]).assign(steps=np.nan))
