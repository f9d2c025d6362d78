import math

import pandas as pd

from bn_lightning.callbacks._measure_figures import shift_figures, smoothness_figures

COLUMNS = ["step", "layer", "quantity", "value"]


def test_smoothness_is_two_ranges_and_both_betas():
    names = ["loss_range_min", "loss_range_max", "gradient_predictiveness_min", "gradient_predictiveness_max"]
    names += ["effective_beta", "effective_beta_normalised"]
    rows = [(step, "", name, 1.0 + number + step) for step in (0, 5) for number, name in enumerate(names)]
    figure = smoothness_figures(pd.DataFrame(rows, columns=COLUMNS))["smoothness"]
    loss, predictiveness, beta = figure.axes
    assert [line.get_ydata().tolist() for line in loss.get_lines()] == [[1, 6], [2, 7]]
    assert [line.get_ydata().tolist() for line in predictiveness.get_lines()] == [[3, 8], [4, 9]]
    assert [text.get_text() for text in beta.get_legend().get_texts()] == ["raw", "in normalised coordinates"]


def test_shift_has_a_line_a_layer_and_dead_layers_none():
    rows = [
        (step, layer, name, math.nan if layer == "dead" else 0.5)
        for step in (0, 5)
        for layer in ("net.2", "dead", "net.4")
        for name in ("gradient_shift", "gradient_shift_cosine")
    ]
    figures = shift_figures(pd.DataFrame(rows, columns=COLUMNS))
    assert list(figures) == ["gradient_shift"]
    assert [line.get_label() for line in figures["gradient_shift"].axes[0].get_lines()] == ["net.2", "net.4"]


def test_many_layers_are_named_by_their_ends():
    rows = [(0, f"net.{layer}", "gradient_shift", 0.5) for layer in range(20)]
    figure = shift_figures(pd.DataFrame(rows, columns=COLUMNS))["gradient_shift"]
    assert "20 layers, from dark (net.0) to light (net.19)" in figure.get_suptitle()


def test_nothing_finite_is_no_figure():
    empty = pd.DataFrame([(0, "", "effective_beta", math.nan)], columns=COLUMNS)
    assert smoothness_figures(empty) == shift_figures(empty) == {}
