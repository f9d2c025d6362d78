"""Figures of the studies of the recipe, shift, smoothness and surfaces: what is drawn is what the tables hold."""

import math

import numpy as np
import pandas as pd
import pytest

from bn_lightning.analysis.plots.by_arm import plot_by_arm
from bn_lightning.analysis.plots.landscapes import plot_landscape_lines, plot_landscape_planes
from bn_lightning.analysis.plots.matched import plot_matched
from bn_lightning.analysis.plots.note import note_figure
from bn_lightning.analysis.plots.style import arm_styles
from bn_lightning.analysis.plots.text_table import draw_text_table

ARMS = {"none": "no norm", "before": "BN before"}


def drawn(ax, gid):
    return [line for line in ax.get_lines() if line.get_gid() == gid]


def values(**arms):
    rows = [(arm, seed, "shift", value) for arm, seeds in arms.items() for seed, value in enumerate(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "measure", "value"])


def test_each_seed_has_a_marker_and_each_arm_a_bar_at_its_median():
    figure = plot_by_arm(values(none=[1.0, 4.0, 2.0], before=[0.1, 0.3]), {"shift": "W"}, arms=ARMS, log=["shift"])
    (ax,) = figure.axes
    assert [line.get_ydata().tolist() for line in drawn(ax, "seed")] == [[1, 4, 2], [0.1, 0.3]]
    assert [line.get_ydata()[0] for line in drawn(ax, "median")] == pytest.approx([2.0, 0.2])
    assert [line.get_color() for line in drawn(ax, "seed")] == [s.color for s in arm_styles(list(ARMS)).values()]
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "W")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["no norm", "BN before"]


def test_values_that_are_not_finite_are_counted_and_no_log_axis_hides_a_zero():
    table = values(none=[1.0, math.nan, math.inf], before=[0.0, 1.0, 2.0])
    (ax,) = plot_by_arm(table, {"shift": "W", "other": "V"}, arms=ARMS, log=["shift"]).axes
    assert ax.get_xticklabels()[0].get_text() == "no norm\n(2 of 3 not finite)"
    assert drawn(ax, "median")[0].get_ydata()[0] == 1.0
    assert ax.get_yscale() == "linear"
    with pytest.raises(ValueError, match="No value of other is finite"):
        plot_by_arm(table, {"other": "V"})


def test_of_two_kinds_one_is_filled_and_one_hollow_side_by_side():
    table = values(none=[1.0, 2.0], before=[3.0, 4.0]).assign(kind=["a", "b", "a", "b"])
    figure = plot_by_arm(table, {"shift": "W"}, arms=ARMS, kinds={"a": "first kind", "b": "second kind"})
    markers = drawn(figure.axes[0], "seed")
    assert [line.get_ydata().tolist() for line in markers] == [[1], [2], [3], [4]]
    assert [line.get_markerfacecolor() == "none" for line in markers] == [False, True] * 2
    places = [line.get_xdata()[0] for line in markers]
    assert places == sorted(places)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first kind", "second kind", "median"]


def matched(losses, betas):
    rows = []
    for arm in ARMS:
        for step, (loss, beta) in enumerate(zip(losses, betas, strict=True)):
            rows += [(arm, 0, step, "", "loss", loss), (arm, 0, step, "", "beta", beta)]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "quantity", "value"])


def test_medians_join_the_values_of_equal_stages():
    losses = [10.0, 9.0, 9.5, 0.1, 0.11, 0.1, 1.0]
    betas = [1.0, 2.0, 6.0, 40.0, 50.0, 70.0, 7.0]
    ax = plot_matched(matched(losses, betas), "loss", "beta", arms=ARMS)
    line = drawn(ax, "median")[0]
    # Ten bins of equal ratio from 0.1 to 10; the loss of 1 alone has too few values for a median.
    assert line.get_ydata().tolist() == [50.0, 2.0]
    assert line.get_xdata() == pytest.approx([0.1 * 10**0.1, 10 / 10**0.1])
    assert drawn(ax, "step")[0].get_ydata().tolist() == betas
    assert ax.xaxis_inverted()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_steps_at_which_one_is_not_finite_are_left_out():
    ax = plot_matched(matched([0.0, 1.0, 2.0], [1.0, math.nan, 3.0]), "loss", "beta")
    assert drawn(ax, "step")[0].get_xdata().tolist() == [0.0, 2.0]
    assert ax.get_xscale() == "linear"
    with pytest.raises(ValueError, match="no step at which 'loss' and 'beta' are both finite"):
        plot_matched(matched([1.0], [math.nan]), "loss", "beta")


COLUMNS = ["arm", "seed", "surface", "norm_mode", "first", "second", "loss"]


def points(arms=tuple(ARMS), top=2.0):
    rows = []
    for number, arm in enumerate(arms):
        for seed in (0, 1, 2):
            for a in (-1.0, 0.0, 1.0):
                rows.append((arm, seed, "end_line", "train", a, math.nan, 1 + number + seed + a * a))
                rows.append((arm, seed, "end_line", "eval", a, math.nan, 100.0))
                rows += [(arm, seed, "end_plane", "train", a, b, number + top ** (a + b)) for b in (-1.0, 0.0, 1.0)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_line_shows_every_seed_and_their_median():
    table = points()
    table.loc[(table["seed"] == 2) & (table["first"] == 1) & (table["arm"] == "none"), "loss"] = math.nan
    (ax,) = plot_landscape_lines(table, {"start_line": "start", "end_line": "end"}, arms=ARMS).axes
    assert len(drawn(ax, "seed")) == 6
    assert [line.get_ydata().tolist() for line in drawn(ax, "median")] == [[3, 2, 2.5], [4, 3, 4]]
    assert ax.get_title() == "end"
    (other,) = plot_landscape_lines(table, {"end_line": "end"}, norm_mode="eval").axes
    assert drawn(other, "median")[1].get_ydata().tolist() == [100] * 3
    with pytest.raises(ValueError, match="No loss on way is finite"):
        plot_landscape_lines(table, {"way": "way"})


def test_planes_are_a_row_a_surface_and_a_column_an_arm_on_one_scale():
    figure = plot_landscape_planes(points(top=8.0), {"start_plane": "start", "end_plane": "end"}, arms=ARMS)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["no norm, seed 0", "BN before, seed 0"]
    scales = {(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in panels}
    assert scales == {(1 / 64, 65.0)}
    assert panels[0].get_ylabel() == "end"


def test_an_arm_without_a_finite_plane_keeps_its_place():
    table = points()
    table.loc[table["arm"] == "none", "loss"] = math.nan
    figure = plot_landscape_planes(table, {"end_plane": "end"}, arms=ARMS)
    assert [bool(ax.collections) for ax in figure.axes if ax.get_title()] == [False, True]
    with pytest.raises(ValueError, match="No loss on end_plane is finite: the table holds 'end_plane', 'end_line'"):
        plot_landscape_planes(table.assign(loss=np.nan), {"end_plane": "end"})


def test_a_text_table_has_one_text_a_cell_and_grey_columns():
    figure = draw_text_table(["arm", "steps"], [["plain", "1,000"], ["costs $", "9"]], muted=[1], note="one note")
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["arm", "plain", r"costs \$", "steps", "1,000", "9", "one note"]
    assert len({text.get_color() for text in figure.texts[:3]} | {figure.texts[3].get_color()}) == 2
    with pytest.raises(ValueError, match="A table of 2 columns has as many texts in each row, not 1"):
        draw_text_table(["arm", "steps"], [["plain"]])


def test_a_table_fits_into_its_figure():
    figure = draw_text_table(["", "wide"], [["a long name of an arm", "123,456,789"]], note="below")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert min(box.y0 for box in boxes) >= 0
    names, numbers = boxes[1], boxes[3]
    assert names.x1 < numbers.x0


def test_a_note_is_a_figure_of_one_line():
    assert note_figure("costs $5").texts[0].get_text() == r"costs \$5"
