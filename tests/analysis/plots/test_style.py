import matplotlib as mpl
import pytest
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure

from bn_lightning.analysis.plots.style import _columns_that_fit, arm_styles, house_style, legend_above, own_axes


def test_every_arm_differs_in_colour_and_dash_together():
    names = [f"arm {i}" for i in range(28)]
    assert len({(style.color, style.dash) for style in arm_styles(names).values()}) == 28


def test_the_first_arms_differ_in_colour_and_in_dash_and_in_marker():
    styles = arm_styles(["none", "before", "after", "both"]).values()
    for attribute in ("color", "dash", "marker"):
        assert len({str(getattr(style, attribute)) for style in styles}) == 4


def test_neighbouring_colours_stay_apart_for_a_reader_without_red_or_green_cones():
    # Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB: protanopia and deuteranopia.
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    colors = [mpl.colors.to_rgb(style.color) for style in arm_styles(["a", "b", "c"]).values()]
    for matrix in (protan, deutan):
        seen = [
            tuple(sum(weight * channel**2.2 for weight, channel in zip(row, color, strict=True)) for row in matrix)
            for color in colors
        ]
        for i, one in enumerate(seen):
            for other in seen[i + 1 :]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.15


def test_too_many_arms_are_refused():
    with pytest.raises(ValueError, match=r"29 arms were to be told apart in one figure, at most 28"):
        arm_styles([str(i) for i in range(29)])


def test_the_house_style_leaves_the_users_settings_alone():
    before = dict(mpl.rcParams)
    with house_style():
        assert dict(mpl.rcParams) != before
    assert dict(mpl.rcParams) == before
    with pytest.raises(KeyError, match="stop"), house_style():
        raise KeyError("stop")
    assert dict(mpl.rcParams) == before


def test_new_axes_are_unknown_to_pyplot_and_given_axes_are_used():
    known = len(_pylab_helpers.Gcf.figs)
    ax = own_axes(None)
    assert own_axes(ax) is ax
    assert len(_pylab_helpers.Gcf.figs) == known


@pytest.mark.parametrize("count", [1, 3, 7, 13])
def test_the_legend_stays_inside_the_figure_whatever_the_labels(count):
    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.add_subplot()
    for i in range(count):
        ax.plot([0, 1], [0, i], label=f"batch norm variant number {i}" + " again" * (i % 3))
    legend_above(ax)
    figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert box.y0 >= ax.get_window_extent().y1


def test_columns_of_a_legend_are_those_that_matplotlib_makes():
    # Five entries in four columns are two and three times one: 4 · 24 characters, not the 3 · 24 of full columns.
    assert _columns_that_fit([16] * 5, 77) == 3
    assert _columns_that_fit([16] * 5, 96) == 4
