import pandas as pd

from bn_lightning.callbacks._activation_monitor.figures import percentile_figures

NAMES = ["p15", "p50", "p85"]


def table(layers, steps=(0, 10, 20)):
    rows = [
        (step, layer, quantity, value + step + 100 * number)
        for number, layer in enumerate(layers)
        for step in steps
        for quantity, value in (("a_p15", -1.0), ("a_p50", 0.5), ("a_p85", 2.0), ("a_var", 4.0))
    ]
    return pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])


def test_each_layer_has_a_panel_with_its_line_and_band():
    layers = ["one", "two"]
    (figure,) = percentile_figures(table(layers), layers, quantity="a", names=NAMES, label="value")
    assert [ax.get_title() for ax in figure.axes] == layers
    for number, ax in enumerate(figure.axes):
        (line,) = ax.get_lines()
        assert line.get_xdata().tolist() == [0, 10, 20]
        assert line.get_ydata().tolist() == [100 * number + 0.5 + step for step in (0, 10, 20)]
        (band,) = ax.collections
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].min() == 100 * number - 1
        assert corners[:, 1].max() == 100 * number + 22
    assert figure.get_suptitle() == "line p50, band p15 to p85"


def test_many_layers_take_several_figures_and_each_layer_one_panel():
    layers = [f"layer{number}" for number in range(50)]
    figures = percentile_figures(table(layers), layers, quantity="a", names=NAMES, label="value")
    titles = [ax.get_title() for figure in figures for ax in figure.axes if ax.get_title()]
    assert len(figures) == 3
    assert titles == layers
