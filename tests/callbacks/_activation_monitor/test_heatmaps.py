import numpy as np
import pandas as pd
import pytest

from bn_lightning.callbacks._activation_monitor.heatmaps import STATISTICS, heatmap


def frame(values, quantity="a_var"):
    rows = [
        (10 * number, layer, quantity, value) for layer, column in values.items() for number, value in enumerate(column)
    ]
    return pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])


def cells(figure):
    return np.ma.asarray(figure.axes[0].collections[0].get_array())


def test_the_standard_deviation_of_each_layer_top_down():
    values = {"second": [4.0, 16.0, 25.0], "first": [1.0, 9.0, 100.0]}
    figure = heatmap(frame(values), list(values), kind="a", of="things", statistic=STATISTICS["std"])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(values)
    np.testing.assert_allclose(cells(figure).reshape(2, 3), [[2, 4, 5], [1, 3, 10]])
    assert ax.get_title() == "Standard deviation of things"


def test_numbers_around_zero_have_symmetric_colours_and_shares_all_of_theirs():
    values = {"one": [-3.0, 1.0], "two": [0.5, 2.0]}
    signed = heatmap(frame(values, "a_mean"), list(values), kind="a", of="things", statistic=STATISTICS["mean"])
    low, high = signed.axes[0].collections[0].get_clim()
    assert low == -high
    assert 2 < high <= 3
    share = heatmap(frame(values, "a_dead"), list(values), kind="a", of="things", statistic=STATISTICS["dead"])
    assert share.axes[0].collections[0].get_clim() == (0, 1)


def test_what_is_missing_or_zero_on_a_logarithmic_scale_stays_empty():
    values = {"one": [0.0, 4.0], "two": [1.0]}
    figure = heatmap(frame(values), list(values), kind="a", of="things", statistic=STATISTICS["std"])
    assert cells(figure).mask.reshape(2, 2).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (1e-12, 1e6), (-1e30, 1e-30)])
@pytest.mark.parametrize("name", STATISTICS)
def test_any_range_can_be_drawn(name, values):
    quantity = f"a_{STATISTICS[name].quantity}"
    kept = [abs(value) for value in values] if STATISTICS[name].scale == "log" else values
    figure = heatmap(frame({"x$^$": kept}, quantity), ["x$^$"], kind="a", of="things", statistic=STATISTICS[name])
    figure.draw_without_rendering()


def test_long_runs_and_deep_networks_keep_a_readable_size():
    values = {f"layer{number}": [1.0 + number] * 300 for number in range(150)}
    figure = heatmap(frame(values), list(values), kind="a", of="things", statistic=STATISTICS["std"])
    assert cells(figure).size == 150 * 60
    assert figure.get_size_inches()[1] <= 12
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "layer0"
    assert 30 < len(names) < 60
