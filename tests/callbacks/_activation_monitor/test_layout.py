import re

import pytest

from bn_lightning.callbacks._activation_monitor.layout import LayerTags, spread, whole_network


def tags(layers, names=("mean", "var"), kind="preactivation"):
    found = LayerTags()
    for number in range(layers):
        found.add(kind, f"{number:03d}.a.{number}", dict.fromkeys(names, float(number)))
    return found


def test_few_layers_are_all_lines_of_one_chart_a_statistic():
    charts = whole_network(tags(3), prefix="", suffix="")["pre-activations, the whole network"]
    assert list(charts) == ["variance, all 3 layers", "mean, all 3 layers"]
    (pattern,) = charts["mean, all 3 layers"].tags
    for layer in ("000.a.0", "001.a.1", "002.a.2"):
        assert re.match(pattern, f"preactivation_mean/{layer}")
    for other in ("preactivation_mean/002.a.2.b", "preactivation_mean/002xa.2", "2.preactivation_mean/002.a.2"):
        assert not re.match(pattern, other)


def test_many_layers_are_eight_lines_from_first_to_last_and_a_range():
    found = tags(150, kind="preactivation_gradient", names=("norm", "mean"))
    categories = whole_network(found, prefix="m.", suffix=" (m)")
    (chart,) = categories["gradients of pre-activations, the whole network (m)"].values()
    shown = [n for n in range(150) if re.match(chart.tags[0], f"m.preactivation_gradient_norm/{n:03d}.a.{n}")]
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == (0, 149)
    (margin,) = categories["gradients of pre-activations, range over all layers (m)"].values()
    assert margin.margin
    ranks = found.ranges()
    assert {tag.removeprefix("m."): ranks[tag.removeprefix("m.")] for tag in margin.tags} == ranks
    assert list(ranks.values()) == [0.0, 74.5, 149.0]


def test_one_layer_is_no_network():
    assert not any(whole_network(tags(1), prefix="", suffix="").values())


def test_a_range_leaves_out_what_is_not_finite_or_no_longer_there():
    found = tags(9, names=("mean",))
    found.add("preactivation", "000.a.0", {"mean": float("inf")})
    found.add("preactivation", "008.a.8", {})
    assert found.ranges()["preactivation_layers/mean_max"] == 7.0
    assert found.ranges()["preactivation_layers/mean_min"] == 1.0


@pytest.mark.parametrize(("count", "most"), [(3, 7), (8, 7), (150, 2), (100, 24)])
def test_spread_takes_each_item_once_in_order(count, most):
    chosen = [int(one) for one in spread([str(number) for number in range(count)], most)]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, most)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
