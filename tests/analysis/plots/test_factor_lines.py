import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from bn_lightning.analysis.plots.factor_lines import plot_factor_lines
from bn_lightning.analysis.plots.style import arm_styles

LINES = {"none": "no norm", "unused": "nobody", "pooled": "pooled"}
OPTIONS = {"x": "size", "line": "kind", "lines": LINES, "xlabel": "batch size", "ylabel": "accuracy"}


def table(seeds=3):
    rows = [
        (kind, size, seed, shift + size / 1000 + seed / 10)
        for kind, shift in (("none", 0.1), ("pooled", 0.2))
        for size in (512, 2, 16)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["kind", "size", "seed", "value"])


def drawn(ax, gid):
    return [line for line in ax.get_lines() if line.get_gid() == gid]


def test_means_stand_at_their_levels_with_the_t_interval():
    (ax,) = plot_factor_lines(table(), **OPTIONS).axes
    means = drawn(ax, "mean")
    assert [line.get_label() for line in means] == ["no norm", "pooled"]
    np.testing.assert_allclose(means[0].get_ydata(), [0.202, 0.216, 0.712])
    np.testing.assert_allclose(np.round(means[0].get_xdata()), [0, 1, 2])
    low, high = drawn(ax, "interval")[0].get_ydata()
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (low, high) == (pytest.approx(0.202 - half), pytest.approx(0.202 + half))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "16", "512"]


def test_colours_are_those_of_the_places_among_all_lines():
    (ax,) = plot_factor_lines(table(), **OPTIONS).axes
    styles = arm_styles(list(LINES))
    assert [to_hex(line.get_color()).upper() for line in drawn(ax, "mean")] == [
        styles["none"].color,
        styles["pooled"].color,
    ]


def test_one_seed_has_no_interval():
    (ax,) = plot_factor_lines(table(seeds=1), **OPTIONS).axes
    assert not drawn(ax, "interval")


def test_a_marker_that_leaves_seeds_out_is_hollow_and_levels_without_any_are_left_out():
    values = table()
    values.loc[(values["kind"] == "none") & (values["size"] == 2) & (values["seed"] == 0), "value"] = math.nan
    values.loc[(values["kind"] == "none") & (values["size"] == 16), "value"] = math.nan
    (ax,) = plot_factor_lines(values, **OPTIONS).axes
    hollow = [line for line in ax.get_lines() if to_hex(line.get_markerfacecolor()) == "#ffffff" and line.get_marker()]
    assert [line.get_ydata()[0] for line in hollow if line.get_linestyle() == "None"] == [pytest.approx(0.252)]
    assert len(drawn(ax, "mean")[0].get_ydata()) == 2


def test_panels_share_the_levels_and_one_legend():
    values = pd.concat([table().assign(norm="a"), table().assign(norm="b")])
    figure = plot_factor_lines(values, **OPTIONS, panel="norm", panels={"a": "first", "b": "second", "c": "third"})
    assert [ax.get_title() for ax in figure.axes] == ["first", "second"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no norm", "pooled"]


@pytest.mark.parametrize("share", [True, False])
def test_panels_share_a_scale_or_have_their_own(share):
    values = pd.concat([table().assign(norm="a"), table().assign(norm="b", value=5.0)])
    panels = {"a": "first", "b": "second"}
    first, second = plot_factor_lines(values, **OPTIONS, panel="norm", panels=panels, share_y=share).axes
    assert (first.get_ylim() == second.get_ylim()) == share


def test_zero_and_a_logarithmic_axis():
    (ax,) = plot_factor_lines(table(), **OPTIONS, log_y=True, zero=True).axes
    assert ax.get_yscale() == "log"
    assert any(list(line.get_ydata()) == [0.0, 0.0] for line in ax.get_lines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), "this one lacks seed"),
        (lambda t: t.assign(kind="ema"), "None of the lines none, unused, pooled has a value: the table holds 'ema'"),
        (lambda t: t.assign(value=math.inf), "None of the 18 values is finite"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plot_factor_lines(change(table()), **OPTIONS)
