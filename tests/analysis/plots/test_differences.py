import pandas as pd
import pytest
from runs import ARMS

from bn_lightning.analysis.plots import plot_differences

NAN = float("nan")


def table(*rows):
    return pd.DataFrame(rows, columns=["arm", "estimate", "low", "high"])


def notes(ax):
    ax.figure.draw_without_rendering()
    return [tick.get_text() for tick in ax.child_axes[0].get_yticklabels()]


def test_estimates_and_intervals_are_those_of_the_table():
    rows = table(("before", 0.02, 0.01, 0.035), ("after", -0.5, NAN, NAN), ("other", NAN, NAN, NAN))
    ax = plot_differences(rows, reference="none", arms={**ARMS, "other": "another"})
    intervals = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines if line.get_gid() == "interval"]
    assert intervals == [([0.01, 0.035], [0, 0])]
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [line.get_xdata()[0] for line in points][:2] == [0.02, -0.5]
    assert [line.get_markerfacecolor() == "none" for line in points[:2]] == [False, True]
    assert notes(ax) == ["+0.02  [+0.01, +0.035]", "-0.5  (no interval)", "not estimable"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["BN before", "BN after", "another"]
    assert ax.get_xlabel() == "difference to no norm"
    assert next(line for line in ax.lines if line.get_gid() == "no difference").get_xdata()[0] == 0
    assert ax.get_xscale() == "linear"


def test_ratios_have_a_logarithmic_axis_around_one():
    ax = plot_differences(table(("before", 0.05, 0.03, 0.09)), ratio=True)
    assert ax.get_xscale() == "log"
    assert next(line for line in ax.lines if line.get_gid() == "no difference").get_xdata()[0] == 1
    assert notes(ax) == ["0.05  [0.03, 0.09]"]
    assert ax.get_xlabel() == "ratio to the reference"


def test_other_columns_and_words():
    rows = table(("before", 0.05, 0.03, 0.09)).rename(columns={"estimate": "gain", "low": "from", "high": "to"})
    ax = plot_differences(rows, estimate="gain", low="from", high="to", xlabel="gain in accuracy")
    assert ax.get_xlabel() == "gain in accuracy"


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"columns arm, estimate, low, high was expected; this one lacks high"):
        plot_differences(table(("a", 0, 0, 0)).drop(columns="high"))


def test_two_rows_of_one_arm_are_refused():
    with pytest.raises(ValueError, match="Arm 'a' has several rows: draw one of them at a time, by quantity="):
        plot_differences(table(("a", 0, 0, 0), ("a", 1, 1, 1)))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="None of the 1 values of 'estimate' is finite"):
        plot_differences(table(("a", NAN, NAN, NAN)))


def test_a_ratio_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"Ratios are positive, but the table holds -1"):
        plot_differences(table(("a", 1, -1, 2)), ratio=True)


def test_one_of_several_quantities_is_drawn_as_its_kind():
    rows = pd.concat(
        [
            table(("a", 0.1, 0.0, 0.2)).assign(quantity="test accuracy", kind="difference"),
            table(("a", 12.0, 10.0, 15.0)).assign(quantity="steps to target", kind="ratio"),
        ]
    )
    assert notes(plot_differences(rows, quantity="test accuracy")) == ["+0.1  [+0, +0.2]"]
    ax = plot_differences(rows, quantity="steps to target")
    assert notes(ax) == ["12  [10, 15]"]
    assert ax.get_xscale() == "log"
    with pytest.raises(ValueError, match="Nothing compares 'steps to targt': the table holds 'steps to target'"):
        plot_differences(rows, quantity="steps to targt")
    with pytest.raises(ValueError, match="this one lacks quantity"):
        plot_differences(table(("a", 0.1, 0.0, 0.2)), quantity="test accuracy")
