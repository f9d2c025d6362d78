import numpy as np
import pytest
from scipy import stats

from bn_lightning.callbacks._activation_monitor.history import PERCENTAGES
from bn_lightning.callbacks._activation_monitor.ridges import density, ridge_figures

SHARES = np.array(PERCENTAGES) / 100


def test_the_density_is_that_of_the_distribution():
    grid = np.linspace(-4, 4, 128)
    found = density(stats.norm.ppf(SHARES), grid)
    assert found.sum() * (grid[1] - grid[0]) == pytest.approx(1)
    # 64 quantiles and the smoothing leave some per cent of the peak.
    np.testing.assert_allclose(found, stats.norm.pdf(grid), atol=0.03)


def test_two_peaks_stay_two():
    grid = np.linspace(-1.2, 1.2, 128)
    found = density(stats.beta.ppf(SHARES, 0.3, 0.3, loc=-1, scale=2), grid)
    assert found[np.abs(grid) < 0.3].max() < 0.5 * found.max()


def test_a_panel_a_layer_and_a_ridge_a_step_with_the_first_on_top():
    history = {f"layer{n}": {step: stats.norm.ppf(SHARES) + n + step for step in (0, 5, 10)} for n in range(14)}
    first, second = ridge_figures(history, of="thing")
    titles = [ax.get_title() for ax in (*first.axes, *second.axes) if ax.get_title()]
    assert titles == list(history)
    ax = first.axes[0]
    bases = [ridge.get_paths()[0].vertices[:, 1].min() for ridge in ax.collections]
    assert bases == [2, 1, 0]
    peaks = [ridge.get_paths()[0].vertices[ridge.get_paths()[0].vertices[:, 1].argmax(), 0] for ridge in ax.collections]
    # A peak is found to a point of the grid, and a normal density is flat there.
    np.testing.assert_allclose(peaks, [0, 5, 10], atol=0.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "5", "10"]


def test_a_deep_network_is_drawn_at_24_layers_from_first_to_last():
    history = {f"layer{number}": {0: stats.norm.ppf(SHARES)} for number in range(150)}
    figures = ridge_figures(history, of="thing")
    titles = [ax.get_title() for figure in figures for ax in figure.axes]
    assert len(figures) == 2
    assert len(titles) == 24
    assert (titles[0], titles[-1]) == ("layer0", "layer149")
    assert "24 of 150 layers" in figures[0].get_suptitle()


def test_a_long_run_has_evenly_spread_ridges():
    (figure,) = ridge_figures({"a": {step: stats.norm.ppf(SHARES) for step in range(80)}}, of="thing")
    assert len(figure.axes[0].collections) == 24


@pytest.mark.parametrize("value", [0.0, 7.0, -1e30, 1e-30])
def test_constants_can_be_drawn(value):
    constant = np.full(64, value, dtype=np.float32)
    (figure,) = ridge_figures({"a$": {0: constant, 1: constant}}, of="thing")
    figure.draw_without_rendering()
