"""Figures of smoothness, shift, surfaces and eigenvalues: what is drawn is what the tables hold."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from bn_lightning.analysis.plots.layers import ACTIVATION_SHIFT, GRADIENT_SHIFT, plot_layers, plot_over_depth
from bn_lightning.analysis.plots.smoothness import plot_ranges, plot_smoothness
from bn_lightning.analysis.plots.style import arm_styles
from bn_lightning.analysis.plots.surfaces import plot_eigenvalues, plot_loss_line, plot_loss_plane

ARMS = {"none": "no norm", "before": "BN before"}
COLUMNS = ["arm", "seed", "step", "layer", "quantity", "value"]


def table(rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def smoothness(arms=("none", "before"), diverged=()):
    rows = []
    for arm in arms:
        for seed in (0, 1):
            for step in range(0, 50, 10):
                gone = arm in diverged and step > 20
                for name, value in (("loss_range", 1.0), ("gradient_predictiveness", 0.1)):
                    for end, more in (("min", 0.0), ("max", 0.5)):
                        number = math.nan if gone else value + more + seed
                        rows.append((arm, seed, step, "", f"{name}_{end}", number))
                for name in ("effective_beta", "effective_beta_normalised"):
                    rows.append((arm, seed, step, "", name, 2.0 + seed + len(name)))
    return table(rows)


def drawn(ax, gid):
    return [artist for artist in [*ax.get_lines(), *ax.collections] if artist.get_gid() == gid]


def test_a_range_is_shaded_between_both_ends_of_one_seed_in_the_colours_of_the_arms():
    ax = plot_ranges(smoothness(), "loss_range", arms=ARMS)
    bands = drawn(ax, "range")
    colours = [to_hex(band.get_facecolor()[0]).upper() for band in bands]
    assert colours == [style.color for style in arm_styles(list(ARMS)).values()]
    heights = bands[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 1.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(ARMS.values())
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize(("seed", "low"), [(None, 1.0), (1, 2.0), ("mean", 1.5)])
def test_one_seed_or_the_mean_of_all_is_drawn(seed, low):
    ax = plot_ranges(smoothness(), "loss_range", seed=seed)
    assert drawn(ax, "edge")[0].get_ydata().tolist() == [low] * 5


def test_a_range_that_ends_early_ends_in_a_cross():
    ax = plot_ranges(smoothness(diverged=("none",)), "loss_range", arms=ARMS)
    (cross,) = drawn(ax, "end")
    assert cross.get_xdata().tolist() == [20]


def test_the_three_panels_share_one_legend_and_beta_can_be_normalised():
    for normalised, first in ((False, 2.5 + len("effective_beta")), (True, 2.5 + len("effective_beta_normalised"))):
        axes = plot_smoothness(smoothness(), arms=ARMS, normalised=normalised)
        assert [ax.get_legend() is None for ax in axes] == [False, True, True]
        assert drawn(axes[2], "mean")[0].get_ydata()[0] == first
        assert ("normalised" in axes[2].get_ylabel()) == normalised


def test_bad_requests_for_ranges_are_refused():
    with pytest.raises(ValueError, match="Seed 7 is not in the arm 'none', which has the seeds"):
        plot_ranges(smoothness(), "loss_range", seed=7)
    empty = smoothness().assign(value=math.nan)
    with pytest.raises(ValueError, match="No value of 'loss_range' is finite"):
        plot_ranges(empty, "loss_range")
    with pytest.raises(ValueError, match="drawn on three axes, got 1"):
        plot_smoothness(smoothness(), axes=[plot_ranges(smoothness(), "loss_range")])


def shift(layers=3, arms=("none", "before"), quantities=(*GRADIENT_SHIFT, *ACTIVATION_SHIFT)):
    return table(
        [
            (arm, 0, step, f"net.{layer}", name, 10.0**-layer if "cosine" not in name else 1 - step / 100)
            for arm in arms
            for step in (0, 10, 20)
            for layer in range(layers)
            for name in quantities
        ]
    )


def test_layers_are_columns_quantities_rows_and_arms_share_a_panel():
    grid = plot_layers(shift(), arms=ARMS)
    assert [ax.get_title() for ax in grid[0]] == ["net.0", "net.1", "net.2"]
    assert [row[0].get_ylabel() for row in grid] == list(GRADIENT_SHIFT.values())
    assert [ax.get_xlabel() for ax in grid[1]] == ["optimizer step"] * 3
    colours = [line.get_color() for line in grid[0][2].get_lines() if len(line.get_xdata()) == 3]
    assert colours == [style.color for style in arm_styles(list(ARMS)).values()]
    (legend,) = grid[0][0].get_figure().legends
    assert [text.get_text() for text in legend.get_texts()] == list(ARMS.values())
    assert [row[0].get_yscale() for row in grid] == ["log", "linear"]


def test_many_layers_are_thinned_and_few_can_be_named():
    grid = plot_layers(shift(layers=20), ACTIVATION_SHIFT)
    titles = [ax.get_title() for ax in grid[0]]
    assert (len(titles), titles[0], titles[-1]) == (6, "net.0", "net.19")
    assert len(plot_layers(shift(), layers=["net.1"])[0]) == 1
    with pytest.raises(ValueError, match=r"No 'gradient_shift' of layer 'net\.9': the table holds 'net\."):
        plot_layers(shift(), layers=["net.9"])
    with pytest.raises(ValueError, match="No layer has 'gradient_shift': the table holds 'activation"):
        plot_layers(shift(quantities=ACTIVATION_SHIFT))


def test_a_quantity_over_depth_has_a_point_a_layer_and_none_where_it_is_dead():
    rows = shift(arms=("last",))
    rows.loc[(rows["layer"] == "net.1") & (rows["quantity"] == "gradient_shift"), "value"] = math.nan
    distance, cosine = plot_over_depth(rows, GRADIENT_SHIFT)
    heights = distance.get_lines()[0].get_ydata()
    assert np.isnan(heights).tolist() == [False, True, False]
    assert cosine.get_lines()[0].get_ydata().tolist() == pytest.approx([0.9] * 3)
    assert [tick.get_text() for tick in distance.get_xticklabels()] == ["net.0", "net.1", "net.2"]
    with pytest.raises(ValueError, match="No layer has any of nothing: the table holds"):
        plot_over_depth(rows, {"nothing": ""})


def points(modes=("train", "eval")):
    line = [("random", mode, a, math.nan, 1 + a * a * (1 + (mode == "eval"))) for mode in modes for a in (-1, 0, 1)]
    plane = [("plane", mode, a, b, 1 + a * a + b) for mode in modes for a in (-1, 0, 1) for b in (0, 1, 2)]
    return pd.DataFrame([*line, *plane], columns=["surface", "norm_mode", "first", "second", "loss"])


def test_a_line_has_a_curve_for_each_mode():
    ax = plot_loss_line(points(), "random")
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[2, 1, 2], [3, 1, 3]]
    with pytest.raises(ValueError, match="There is no line or plane 'gradient': the table holds 'random', 'plane'"):
        plot_loss_line(points(), "gradient")
    with pytest.raises(ValueError, match="No loss on 'random' is finite"):
        plot_loss_line(points().assign(loss=math.inf), "random")


def test_a_plane_has_a_panel_for_each_mode_on_one_scale():
    axes = plot_loss_plane(points())
    assert [ax.get_title() for ax in axes] == ["norms in training mode", "norms in evaluation mode"]
    scales = [(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in axes]
    assert scales == [(1.0, 4.0)] * 2
    broken = points(modes=("train",))
    broken.loc[broken.index[-1], "loss"] = math.nan
    assert len(plot_loss_plane(broken)) == 1


def test_eigenvalues_of_both_modes_are_ranked():
    rows = [
        ("last", 0, 9, "", f"hessian_eigenvalue_{rank}_{mode}", scale / rank)
        for mode, scale in (("train", 2.0), ("eval", 20.0))
        for rank in (1, 2)
    ]
    rows.append(("last", 0, 9, "", "hessian_eigenvalue_1_residual_train", 1e-6))
    ax = plot_eigenvalues(table(rows))
    curves = [line for line in ax.get_lines() if line.get_label().startswith("norms")]
    assert [line.get_ydata().tolist() for line in curves] == [[2.0, 1.0], [20.0, 10.0]]
    with pytest.raises(ValueError, match="no finite eigenvalue of the Hessian: measure curvature first"):
        plot_eigenvalues(table(rows[-1:]))
