import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure
from runs import ARMS, COLUMNS, made_up_results

from bn_lightning.analysis.plots import plot_percentile_bands
from bn_lightning.analysis.plots.style import arm_styles

RESULTS = made_up_results(seeds=3, max_steps=300)


def drawn(ax, gid):
    return [line.get_ydata() for line in ax.lines if line.get_gid() == gid]


def percentile(results, arm, seed, percent, unit=12):
    wanted = (results["arm"] == arm) & (results["quantity"] == f"preactivation_unit{unit}_p{percent}")
    table = results[wanted].pivot(index="step", columns="seed", values="value")
    return (table[seed] if seed != "mean" else table.mean(axis=1)).to_numpy()


@pytest.mark.parametrize("seed", [0, 2, "mean"])
def test_each_arm_has_a_panel_with_its_percentiles(seed):
    panels = plot_percentile_bands(RESULTS, layer="net.4", unit=12, seed=seed, arms=ARMS)
    assert [ax.get_title() for ax in panels] == list(ARMS.values())
    for ax, arm in zip(panels, ARMS, strict=True):
        np.testing.assert_allclose(drawn(ax, "edge")[0], percentile(RESULTS, arm, seed, 15))
        np.testing.assert_allclose(drawn(ax, "edge")[1], percentile(RESULTS, arm, seed, 85))
        np.testing.assert_allclose(drawn(ax, "middle")[0], percentile(RESULTS, arm, seed, 50))
        [band] = ax.collections
        corners = band.get_paths()[0].vertices
        np.testing.assert_allclose(corners[:, 1].max(), percentile(RESULTS, arm, seed, 85).max())
        np.testing.assert_allclose(corners[:, 1].min(), percentile(RESULTS, arm, seed, 15).min())
        assert ax.lines[0].get_color() == arm_styles(list(ARMS))[arm].color
    assert len({ax.get_ylim() for ax in panels}) == 1
    title = panels[0].figure.get_suptitle()
    assert title.startswith("input to the nonlinearity of unit 12 of net.4: percentiles 15, 50, 85; ")
    assert title.endswith("mean over 3 seeds" if seed == "mean" else f"seed {seed}")


def test_the_lowest_shared_seed_is_the_default():
    results = RESULTS[~((RESULTS["arm"] == "after") & (RESULTS["seed"] == 0))]
    panels = plot_percentile_bands(results, layer="net.4", unit=12)
    np.testing.assert_allclose(drawn(panels[0], "middle")[0], percentile(RESULTS, "none", 1, 50))
    assert panels[0].figure.get_suptitle().endswith("seed 1")


def test_a_whole_layer_and_other_percentiles():
    rows = [("s", "a", 0, step, "net.0", f"x_p{p:g}", p + step) for step in (0, 5) for p in (2.5, 25, 75, 97.5)]
    [ax] = plot_percentile_bands(
        pd.DataFrame(rows, columns=COLUMNS), layer="net.0", percentiles=(97.5, 25, 75, 2.5), quantity_prefix="x"
    )
    assert [edge.tolist() for edge in drawn(ax, "edge")] == [[2.5, 7.5], [97.5, 102.5], [25, 30], [75, 80]]
    assert not drawn(ax, "middle")
    assert len(ax.collections) == 2
    assert "of net.0: percentiles 2.5, 25, 75, 97.5" in ax.figure.get_suptitle()


def renamed(results, arm, seed, unit):
    rows = (results["arm"] == arm) & (results["seed"] == seed)
    changed = results.copy()
    changed.loc[rows, "quantity"] = changed.loc[rows, "quantity"].str.replace("unit12", f"unit{unit}")
    return changed


def test_the_followed_unit_is_found_per_cell_and_named():
    same = plot_percentile_bands(RESULTS, layer="net.4", unit="followed")
    assert "unit 12 of net.4" in same[0].figure.get_suptitle()
    results = renamed(renamed(RESULTS, "before", 0, 7), "before", 1, 3)
    panels = plot_percentile_bands(results, layer="net.4", unit="followed")
    assert [ax.get_title() for ax in panels] == ["none (unit 12)", "before (unit 7)", "after (unit 12)"]
    assert "one unit of net.4" in panels[0].figure.get_suptitle()
    np.testing.assert_allclose(drawn(panels[1], "middle")[0], percentile(RESULTS, "before", 0, 50))


def test_the_lowest_of_several_followed_units_is_drawn():
    results = pd.concat([RESULTS, made_up_results(seeds=3, max_steps=300, unit=40).assign(value=99.0)])
    results = results[~((results["quantity"] == "test_accuracy") & (results["value"] == 99.0))]
    panels = plot_percentile_bands(results, layer="net.4", unit="followed")
    np.testing.assert_allclose(drawn(panels[0], "middle")[0], percentile(RESULTS, "none", 0, 50))


def test_a_diverged_run_ends_in_a_cross_and_is_named():
    results = made_up_results(seeds=1, max_steps=300, diverged=(("none", 0),))
    none, before, _ = plot_percentile_bands(results, layer="net.4", unit=12)
    assert none.get_title() == "none (ends early, ×)"
    assert before.get_title() == "before"
    [end] = [line for line in none.lines if line.get_gid() == "end"]
    assert end.get_xdata().tolist() == [150]
    np.testing.assert_allclose(end.get_ydata(), percentile(results, "none", 0, 50)[3])


def test_a_mean_over_seeds_ends_with_the_first_that_diverges():
    results = made_up_results(seeds=3, max_steps=300, diverged=(("none", 1),))
    none = plot_percentile_bands(results, layer="net.4", unit=12, seed="mean")[0]
    assert np.isnan(drawn(none, "middle")[0]).tolist() == [False] * 4 + [True] * 3


def test_given_axes_are_used_and_pyplot_knows_no_figure():
    known = len(_pylab_helpers.Gcf.figs)
    axes = tuple(Figure().subplots(1, 3))
    assert plot_percentile_bands(RESULTS, layer="net.4", unit=12, axes=axes, ylabel="input") == axes
    assert axes[0].get_ylabel() == "input"
    plot_percentile_bands(RESULTS, layer="net.4", unit=12)
    assert len(_pylab_helpers.Gcf.figs) == known


def test_a_missing_percentile_names_those_there_are():
    with pytest.raises(ValueError, match=r"'preactivation_unit12_p10' for layer 'net.4'.*'preactivation_unit12_p15'"):
        plot_percentile_bands(RESULTS, layer="net.4", unit=12, percentiles=(10, 50, 90))


def test_an_unfollowed_layer_names_what_was_recorded():
    whole = RESULTS.assign(quantity=RESULTS["quantity"].str.replace("_unit12", ""))
    with pytest.raises(ValueError, match=r"No single unit of layer 'net.4' was followed.*'preactivation_p15'.*units="):
        plot_percentile_bands(whole, layer="net.4", unit="followed")


def test_a_missing_seed_names_the_shared_ones():
    with pytest.raises(ValueError, match=r"Seed 7 is not in every arm of none, before, after: .* \[0, 1, 2\]"):
        plot_percentile_bands(RESULTS, layer="net.4", unit=12, seed=7)


def test_arms_without_a_common_seed_need_a_choice():
    one = (RESULTS["arm"] == "none") & (RESULTS["seed"] == 0)
    other = (RESULTS["arm"] == "after") & (RESULTS["seed"] == 1)
    with pytest.raises(ValueError, match=r"The arms none, after share no seed: .*seed='mean'"):
        plot_percentile_bands(RESULTS[one | other], layer="net.4", unit=12)


def test_percentiles_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"between 0 and 100 were expected, found \(50, 101\)"):
        plot_percentile_bands(RESULTS, layer="net.4", percentiles=(50, 101))


def test_the_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match=r"3 arms need 3 axes \(none, before, after\), got 1"):
        plot_percentile_bands(RESULTS, layer="net.4", unit=12, axes=[Figure().add_subplot()])


def test_nothing_finite_is_refused():
    with pytest.raises(ValueError, match=r"No percentile of layer 'net.4' is finite for seed 0"):
        plot_percentile_bands(RESULTS.assign(value=np.nan), layer="net.4", unit=12)
