import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure
from runs import ARMS, made_up_results
from scipy import stats

from bn_lightning.analysis.plots import plot_curves
from bn_lightning.analysis.plots.style import arm_styles

RESULTS = made_up_results(seeds=6, max_steps=300)


def lines(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def bands(ax):
    """Steps, lower and upper edges of every band, read back from its polygon."""
    read = []
    for collection in ax.collections:
        if collection.get_gid() == "interval":
            corners = np.concatenate([path.vertices for path in collection.get_paths()])
            steps = np.unique(corners[:, 0])
            edges = [corners[corners[:, 0] == step, 1] for step in steps]
            read.append((steps, np.array([edge.min() for edge in edges]), np.array([edge.max() for edge in edges])))
    return read


def values_of(results, arm):
    rows = results[(results["quantity"] == "test_accuracy") & (results["arm"] == arm)]
    return rows.pivot_table(index="step", columns="seed", values="value", dropna=False)


def test_means_bands_and_seeds_are_those_of_the_table():
    ax = plot_curves(RESULTS, "test_accuracy")
    assert len(lines(ax, "mean")) == 3
    for place, arm in enumerate(ARMS):
        table = values_of(RESULTS, arm)
        np.testing.assert_allclose(lines(ax, "mean")[place].get_ydata(), table.mean(axis=1))
        np.testing.assert_array_equal(lines(ax, "mean")[place].get_xdata(), table.index)
        low, high = stats.t.interval(0.95, 5, loc=table.mean(axis=1), scale=stats.sem(table, axis=1))
        steps, drawn_low, drawn_high = bands(ax)[place]
        np.testing.assert_array_equal(steps, table.index)
        np.testing.assert_allclose(drawn_low, low)
        np.testing.assert_allclose(drawn_high, high)
    singles = np.array([line.get_ydata() for line in lines(ax, "seed")])
    expected = np.concatenate([values_of(RESULTS, arm).to_numpy().T for arm in ARMS])
    np.testing.assert_array_equal(singles, expected)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 7).flatmap(
        lambda seeds: st.lists(st.lists(st.floats(-1e3, 1e3), min_size=seeds, max_size=seeds), min_size=1, max_size=6)
    )
)
def test_the_band_is_scipys_t_interval_whatever_the_values(values):
    rows = [("a", seed, step, "", "q", value) for step, at in enumerate(values) for seed, value in enumerate(at)]
    ax = plot_curves(pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"]), "q")
    array = np.array(values)
    half = stats.sem(array, axis=1) * stats.t.ppf(0.975, array.shape[1] - 1)
    [(_, low, high)] = bands(ax)
    np.testing.assert_allclose(high - low, 2 * half, atol=1e-9)
    np.testing.assert_allclose(lines(ax, "mean")[0].get_ydata(), array.mean(axis=1), atol=1e-9)


def test_the_mean_ends_where_a_seed_diverges_and_says_so():
    results = made_up_results(seeds=6, max_steps=300, diverged=(("none", 2), ("none", 4)))
    ax = plot_curves(results, "test_accuracy", arms=ARMS)
    none, before, _ = lines(ax, "mean")
    assert np.isnan(none.get_ydata()).tolist() == [False] * 4 + [True] * 3
    assert np.isfinite(before.get_ydata()).all()
    steps, low, _ = bands(ax)[0]
    assert steps.max() == 150
    assert np.isfinite(low).all()
    ends = lines(ax, "end")
    assert [line.get_xdata().tolist() for line in ends] == [[150], [150]]
    assert {line.get_marker() for line in ends} == {"x"}
    assert ax.get_legend().get_title().get_text() == (
        "mean over 6 seeds, band: 95 % t interval\n× seeds that end early: no norm 2 of 6"
    )


def test_without_single_seeds_they_are_still_drawn_where_the_mean_is_missing():
    results = made_up_results(seeds=3, max_steps=300, diverged=(("none", 1),))
    ax = plot_curves(results, "test_accuracy", seeds=False)
    drawn = [np.flatnonzero(np.isfinite(line.get_ydata())).tolist() for line in lines(ax, "seed")]
    # From the last step with a mean (index 3) on; the diverged seed has that step alone.
    assert drawn == [[3, 4, 5, 6], [3], [3, 4, 5, 6]]


def test_a_seed_that_never_was_finite_is_counted():
    results = made_up_results(seeds=2, max_steps=100)
    results.loc[(results["arm"] == "none") & (results["seed"] == 1), "value"] = np.inf
    ax = plot_curves(results, "test_accuracy")
    assert "none 1 of 2" in ax.get_legend().get_title().get_text()


def test_one_seed_is_drawn_without_an_interval():
    ax = plot_curves(made_up_results(seeds=1, max_steps=100), "test_accuracy")
    assert not lines(ax, "mean")
    assert not ax.collections
    assert ax.get_legend().get_title().get_text() == "one seed per arm: no interval"


def test_an_arm_keeps_its_colour_and_dash_when_others_are_missing():
    alone = plot_curves(RESULTS[RESULTS["arm"] == "after"], "test_accuracy", arms=ARMS)
    [mean] = lines(alone, "mean")
    style = arm_styles(list(ARMS))["after"]
    assert mean.get_color() == style.color
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["BN after"]


def test_the_target_is_a_line_at_its_height():
    ax = plot_curves(RESULTS, "test_accuracy", target=0.95)
    assert any(line.get_label() == "target 0.95" and set(line.get_ydata()) == {0.95} for line in ax.lines)


def test_logarithmic_steps_keep_step_zero():
    ax = plot_curves(RESULTS, "test_accuracy", log_x=True)
    ax.figure.draw_without_rendering()
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim() == (0, 300)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "50", "100", "200"]
    later = RESULTS[RESULTS["step"] > 0]
    assert plot_curves(later, "test_accuracy", log_x=True, log_y=True).get_xscale() == "log"


def test_given_axes_are_used_and_pyplot_knows_no_figure():
    known = len(_pylab_helpers.Gcf.figs)
    ax = Figure().add_subplot()
    assert plot_curves(RESULTS, "test_accuracy", ax=ax, ylabel="share") is ax
    assert ax.get_ylabel() == "share"
    assert plot_curves(RESULTS, "test_accuracy").get_ylabel() == "test accuracy"
    assert len(_pylab_helpers.Gcf.figs) == known


def test_nothing_finite_is_refused():
    with pytest.raises(ValueError, match=r"None of the 126 values of 'test_accuracy' is finite"):
        plot_curves(RESULTS.assign(value=np.nan), "test_accuracy")


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match=r"No results of quantity 'test_accuracy'.*holds nothing"):
        plot_curves(RESULTS.iloc[:0], "test_accuracy")
