import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm
from runs import COLUMNS

from bn_lightning.analysis.plots import plot_heatmap
from bn_lightning.analysis.plots.heatmap import step_edges

VALUES = {"net.0": [1.0, 2.0, 4.0], "net.2": [-1.0, np.nan, 8.0]}
STEPS = (0, 10, 100)


def table(seed=0, scale=1.0):
    rows = [
        ("s", "none", seed, step, layer, "var", scale * value)
        for layer, values in VALUES.items()
        for step, value in zip(STEPS, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_cells_are_the_tables_values_at_their_steps():
    ax = plot_heatmap(table(), "var", arm="none")
    [mesh] = ax.collections
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan), list(VALUES.values()))
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [-5, 5, 55, 145])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["net.0", "net.2"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_title() == "var: none, seed 0"
    assert ax.get_xlabel() == "optimizer step\ngrey: 1 of 6 values missing or not finite"
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-1, 8)


def test_logarithmic_colours_leave_out_what_is_not_positive():
    ax = plot_heatmap(table(), "var", arm="none", log=True, label="variance")
    [mesh] = ax.collections
    assert isinstance(mesh.norm, LogNorm)
    assert mesh.get_array().mask.tolist() == [[False] * 3, [True, True, False]]
    assert ax.get_xlabel().endswith("grey: 2 of 6 values missing, not finite or not positive")
    assert ax.get_title() == "variance: none, seed 0"


def test_the_asked_seed_and_layers_are_drawn():
    both = pd.concat([table(0), table(3, scale=10.0)])
    ax = plot_heatmap(both, "var", arm="none", seed=3, layers=["net.2"])
    np.testing.assert_array_equal(ax.collections[0].get_array().filled(np.nan), [[-10, np.nan, 80]])


def test_a_single_step_has_a_width():
    np.testing.assert_array_equal(step_edges(np.array([7.0])), [6.5, 7.5])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {"arm": "non"}, "No results of arm 'non': the table holds 'none'"),
        (lambda t: t, {"arm": "none", "quantity": "va"}, "No layer of arm 'none' has 'va': of layers .* 'var'"),
        (lambda t: t, {"arm": "none", "seed": 4}, r"No 'var' of arm 'none' with seed 4: there are \[0\]"),
        (lambda t: t, {"arm": "none", "layers": ["net.1"]}, "No 'var' of layer 'net.1': the table holds 'net"),
        (lambda t: pd.concat([t, t]), {"arm": "none"}, "several values for one layer and step: the table mixes runs"),
        (lambda t: t.assign(value=np.nan), {"arm": "none"}, "can be drawn: none is finite"),
        (lambda t: t.assign(value=-1.0), {"arm": "none", "log": True}, "can be drawn: none is finite and positive"),
        (lambda t: t.drop(columns="layer"), {"arm": "none"}, "this one lacks layer"),
    ],
)
def test_bad_input_is_refused(change, options, message):
    with pytest.raises(ValueError, match=message):
        plot_heatmap(change(table()), **{"quantity": "var"} | options)
