import math

import pandas as pd
import pytest

from bn_lightning.analysis.drift import percentile_drift
from bn_lightning.errors import UnknownNameError


def table(curves, *, arm="none", seed=0, unit=3, layer="net.4"):
    rows = [
        ("s", arm, seed, 10 * step, layer, f"preactivation_unit{unit}_p{percentile}", value)
        for percentile, values in curves.items()
        for step, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "layer", "quantity", "value"])


CURVES = {15: [-1.0, -3.0, -2.0], 50: [0.0, 1.0, 0.0], 85: [1.0, 1.0, 4.0]}


def test_range_and_path_by_hand():
    found = percentile_drift(table(CURVES), layer="net.4").set_index("percentile")
    assert found["range"].tolist() == [2.0, 1.0, 3.0]
    assert found["path"].tolist() == [3.0, 2.0, 3.0]
    spread = (2 + 4 + 6) / 3
    assert found["relative_range"].tolist() == [2 / spread, 1 / spread, 3 / spread]
    assert found["relative_path"].tolist() == [3 / spread, 2 / spread, 3 / spread]
    assert set(found["unit"]) == {3}


def test_shifting_changes_nothing_and_scaling_only_the_absolute_numbers():
    one = percentile_drift(table(CURVES), layer="net.4")
    moved = percentile_drift(table({p: [7 + 4 * v for v in values] for p, values in CURVES.items()}), layer="net.4")
    assert moved["range"].tolist() == (4 * one["range"]).tolist()
    assert moved["relative_path"].tolist() == pytest.approx(one["relative_path"].tolist())


def test_rows_in_any_order_and_other_quantities_and_cells_apart():
    extra = [table(CURVES, arm="before", seed=2, unit=9), table(CURVES, layer="net.0")]
    layers = table(CURVES).assign(quantity="preactivation_p50")
    shuffled = pd.concat([table(CURVES), *extra, layers]).sample(frac=1, random_state=0)
    found = percentile_drift(shuffled, layer="net.4")
    assert sorted(set(zip(found["arm"], found["seed"], found["unit"], strict=True))) == [
        ("before", 2, 9),
        ("none", 0, 3),
    ]
    assert sorted(found["path"]) == [2.0, 2.0, 3.0, 3.0, 3.0, 3.0]


def test_a_diverged_run_has_no_drift():
    found = percentile_drift(table({15: [-1.0, math.nan], 85: [1.0, 2.0]}), layer="net.4")
    assert found["relative_range"].isna().all()
    assert found["range"].isna().tolist() == [True, False]


def test_a_layer_without_a_followed_unit_is_named():
    with pytest.raises(UnknownNameError, match=r"no layer with a followed unit 'net.2'. Did you mean 'net.4'"):
        percentile_drift(table(CURVES), layer="net.2")
