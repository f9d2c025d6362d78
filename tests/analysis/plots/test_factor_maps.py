import math

import numpy as np
import pandas as pd
import pytest

from bn_lightning.analysis.plots.factor_maps import plot_factor_maps

OPTIONS = {
    "x": "rate",
    "y": "depth",
    "panel": "norm",
    "panels": {"none": "no norm", "before": "BN", "after": "BN after"},
    "words": {"rate": "learning rate", "depth": "hidden layers"},
    "label": "accuracy",
}


def table():
    """Two seeds; the deep network without a norm diverges once at rate 1, always at rate 10."""
    rows = []
    for norm, shift in (("none", 0.0), ("before", 0.5)):
        for depth in (3, 30):
            for rate in (1.0, 10.0):
                for seed in (0, 1):
                    gone = norm == "none" and depth == 30 and (rate == 10.0 or seed == 1)
                    rows.append((norm, rate, depth, seed, math.nan if gone else shift + rate / 100 + seed / 10))
    return pd.DataFrame(rows, columns=["norm", "rate", "depth", "seed", "value"])


def notes(ax):
    return {(text.get_position()[0], text.get_position()[1]): text.get_text() for text in ax.texts}


def test_means_are_written_where_they_belong_and_a_star_marks_lost_runs():
    figure = plot_factor_maps(table(), **OPTIONS)
    none, before = figure.axes[:2]
    assert [ax.get_title() for ax in (none, before)] == ["no norm", "BN"]
    # Rows from above: depth 30, then 3; columns: rate 1, then 10.
    assert notes(none) == {(0.5, 0.5): "0.01*", (0.5, 1.5): "0.06", (1.5, 1.5): "0.15", (1.5, 0.5): "×"}
    assert notes(before) == {(0.5, 0.5): "0.56", (1.5, 0.5): "0.65", (0.5, 1.5): "0.56", (1.5, 1.5): "0.65"}
    assert [label.get_text() for label in none.get_yticklabels()] == ["30", "3"]
    assert [label.get_text() for label in none.get_xticklabels()] == ["1", "10"]


def test_all_panels_share_the_colours():
    figure = plot_factor_maps(table(), **OPTIONS, bounds=(0.0, 1.0))
    assert {ax.collections[0].get_clim() for ax in figure.axes[:2]} == {(0.0, 1.0)}
    own = plot_factor_maps(table(), **OPTIONS)
    for ax in own.axes[:2]:
        assert ax.collections[0].get_clim() == pytest.approx((0.01, 0.65))


def test_the_colours_run_evenly_so_that_they_read_in_grey():
    colors = plot_factor_maps(table(), **OPTIONS).axes[0].collections[0].get_cmap()(np.linspace(0, 1, 9))[:, :3]
    luminance = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="rate"), r"columns rate, depth, norm and value was expected; it lacks \['rate'\]"),
        (
            lambda t: t.assign(norm="batch"),
            "None of the panels none, before, after has a value: the table holds 'batch'",
        ),
        (lambda t: t.assign(value=math.nan), "None of the 16 values is finite"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plot_factor_maps(change(table()), **OPTIONS)
