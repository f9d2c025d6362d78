import math

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from bn_lightning.analysis.plots.crossed import plot_crossed
from bn_lightning.analysis.plots.style import arm_styles

GROUPS = {"relu": "ReLU", "tanh": "tanh", "elu": "ELU"}
SERIES = {"none": "without BN", "before": "BN before"}


def table(*rows):
    return pd.DataFrame(rows, columns=["group", "series", "seed", "value"])


VALUES = table(
    ("relu", "none", 0, 0.5),
    ("relu", "none", 1, 0.7),
    ("relu", "none", 2, 0.9),
    ("tanh", "none", 0, 0.4),
    ("tanh", "none", 1, math.nan),
    ("tanh", "before", 0, math.nan),
)


def lines(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def test_means_and_t_intervals_are_those_of_the_seeds():
    figure = plot_crossed(VALUES, groups=GROUPS, series=SERIES, xlabel="accuracy")
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["ReLU", "tanh"]
    assert [line.get_xdata()[0] for line in lines(ax, "mean")] == pytest.approx([0.7, 0.4])
    (interval,) = lines(ax, "interval")
    half = stats.t.ppf(0.975, 2) * 0.2 / 3**0.5
    assert list(interval.get_xdata()) == pytest.approx([0.7 - half, 0.7 + half])
    assert ax.get_xlabel() == "accuracy"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SERIES.values())


def test_seeds_that_diverged_are_left_out_and_counted():
    (ax,) = plot_crossed(VALUES, groups=GROUPS, series=SERIES, xlabel="accuracy").axes
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in lines(ax, "mean")] == [False, True]
    assert [text.get_text() for text in ax.texts] == ["1 of 2"]


def test_published_numbers_stand_in_a_panel_of_their_own():
    published = {"relu": {"none": 0.471, "before": 0.474}, "elu": {"none": 0.488}}
    figure = plot_crossed(VALUES, groups=GROUPS, series=SERIES, xlabel="accuracy", published=published)
    markers = [line for line in figure.axes[1].lines if line.get_linestyle() == "None"]
    # ELU has no row of its own.
    assert [line.get_xdata()[0] for line in markers] == [0.471, 0.474]
    styles = arm_styles(list(SERIES))
    assert [line.get_color() for line in markers] == [styles["none"].color, styles["before"].color]


def test_differences_have_a_line_at_zero_and_a_series_without_rows_no_entry():
    only = VALUES[VALUES["series"] == "none"]
    figure = plot_crossed(only, groups=GROUPS, series={"other": "another", **SERIES}, xlabel="difference", zero=True)
    (ax,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["without BN"]
    assert lines(ax, "mean")[0].get_color() == arm_styles(["other", "none"])["none"].color
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in ax.lines)


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="this one lacks seed"):
        plot_crossed(VALUES.drop(columns="seed"), groups=GROUPS, series=SERIES, xlabel="")
    with pytest.raises(ValueError, match="None of the groups gelu has a value: the table holds 'relu', 'tanh'"):
        plot_crossed(VALUES, groups={"gelu": "GELU"}, series=SERIES, xlabel="")
    with pytest.raises(ValueError, match="None of the 1 values is finite"):
        plot_crossed(table(("relu", "none", 0, math.inf)), groups=GROUPS, series=SERIES, xlabel="")
