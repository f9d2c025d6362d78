import pandas as pd
import pytest

from bn_lightning.callbacks._activation_monitor.depth import depth_figure
from bn_lightning.callbacks._activation_monitor.heatmaps import STATISTICS


def figure(norms, layers):
    rows = [
        (step, layer, "g_norm", value)
        for step, values in norms.items()
        for layer, value in zip(layers, values, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])
    return depth_figure(frame, layers, kind="g", of="gradients", statistic=STATISTICS["norm"])


def test_a_line_a_step_from_the_first_layer_to_the_last_on_a_logarithmic_axis():
    layers = ["b", "a", "c"]
    norms = {0: [1e-6, 1e-4, 1e-2], 30: [1e-3, 1e-2, 1e-1]}
    ax = figure(norms, layers).axes[0]
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == list(norms.values())
    assert [label.get_text() for label in ax.get_xticklabels()] == layers
    assert ax.get_yscale() == "log"


def test_many_steps_are_eight_lines_and_many_layers_thirty_names():
    layers = [f"layer{number}" for number in range(150)]
    ax, bar = figure({step: [1.0] * 150 for step in range(100)}, layers).axes
    assert len(ax.get_lines()) == 8
    assert 25 <= len(ax.get_xticklabels()) <= 30
    assert [tick.get_text() for tick in bar.get_yticklabels()][0::7] == ["0", "99"]


@pytest.mark.parametrize("norms", [[0.0, 0.0], [1.0, 1.0], [1e-30, 1e30]])
def test_any_range_can_be_drawn(norms):
    figure({5: norms}, ["a$", "b"]).draw_without_rendering()
